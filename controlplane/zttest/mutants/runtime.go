package main

// runtime stands in every package that has mutants. What it does, it does if the
// number is that of the mutant that lives.
const runtime = `
import (
	ztmaps "maps"
	ztos "os"
	ztslices "slices"
	ztstrconv "strconv"
)

var ztLives = func() int { n, _ := ztstrconv.Atoi(ztos.Getenv("ZT_MUTANT")); return n }()

func ztIs(n int) bool { return ztLives == n && n > 0 }

func ztNot[B ~bool](n int, b B) B    { return b != B(ztIs(n)) }
func ztAlways[B ~bool](n int, b B) B { return b || B(ztIs(n)) }
func ztNever[B ~bool](n int, b B) B  { return b && B(!ztIs(n)) }

func ztZero[T any](n int, v T) T {
	if ztIs(n) {
		var zero T
		return zero
	}
	return v
}

func ztOr[T any](n int, other, v T) T {
	if ztIs(n) {
		return other
	}
	return v
}

func ztSame[T any](v T) T { return v }

func ztMore[I ~int | ~uint32 | ~int64](n int, i I) I {
	if ztIs(n) {
		return i + 1
	}
	return i
}

func ztLess[I ~int | ~uint32 | ~int64](n int, i I) I {
	if ztIs(n) && i > 0 {
		return i - 1
	}
	return i
}

func ztRest[S ~[]E, E any](n int, s S) S {
	if ztIs(n) && len(s) > 0 {
		return s[1:]
	}
	return s
}

func ztFirst[S ~[]E, E any](n int, s S) S {
	if ztIs(n) && len(s) > 0 {
		return s[:1]
	}
	return s
}

func ztLast[S ~[]E, E any](n int, s S) S {
	if ztIs(n) && len(s) > 0 {
		return s[:len(s)-1]
	}
	return s
}

func ztDrop[S ~[]E, E any](n, i int, s S) S {
	if ztIs(n) {
		return ztslices.Delete(s, i, i+1)
	}
	return s
}

func ztDelete[M ~map[K]V, K comparable, V any](n int, k K, m M) M {
	if ztIs(n) {
		delete(m, k)
	}
	return m
}

// ztWithout leaves out the last of the keys.
func ztWithout[M ~map[K]V, K ~string | ~int, V any](n int, m M) M {
	if keys := ztslices.Sorted(ztmaps.Keys(m)); ztIs(n) && len(keys) > 0 {
		m = ztmaps.Clone(m)
		delete(m, keys[len(keys)-1])
	}
	return m
}
`

// predicates stands in xds besides.
const predicates = `
func ztNegate(n int, p *predicate) *predicate {
	if ztIs(n) {
		return not(p)
	}
	return p
}
`

// beside says why a function is no part of what judges; empty if it is one.
func beside(function string) string {
	return map[string]string{
		"explainDenial":         "what an answer tells",
		"newCompiler":           "proposals, which no verdict depends on",
		"compiler.shadowRules":  "proposals, which no verdict depends on",
		"compiler.verifies":     "proposals, which no verdict depends on",
		"compiler.proposed":     "proposals, which no verdict depends on",
		"differing":             "proposals, which no verdict depends on",
		"compiler.providers":    "keys, and providers of proposals",
		"Rule.text":             "an order",
		"paying":                "which rules are grouped, in no group they mean the same",
		"ruleGroup.saved":       "which rules are grouped",
		"ruleGroup.tests":       "which rules are grouped",
		"builder.external":      "a cluster",
		"builder.originTLS":     "a cluster",
		"builder.keys":          "a cluster",
		"http1":                 "a cluster",
		"Egress.authority":      "what a server is asked for",
		"isKeysURI":             "refuses, and lowers nothing",
		"isHeader":              "refuses, and lowers nothing",
		"socketAddress":         "an address",
		"targetAddress":         "an address",
		"overrides":             "headers to the application",
		"builder.inboundTCP":    "the way to the application",
		"keyless":               "a key that nobody has",
		"compiler.tcpCalls":     "listeners of the caller",
		"compiler.authorizer":   "settings of the authorizer",
		"compiler.destinations": "routes of the caller",
		"Pairs":                 "runtime keys",
	}[function]
}

// silent are fields that judge nothing.
func silent() []string {
	return []string{
		"StatPrefix", "RulesStatPrefix", "ShadowRulesStatPrefix", "TransportSocketConnectTimeout", "TrafficDirection",
		"Timeout", "ResponseHeadersToRemove", "RequestHeadersToRemove", "EnableReusePort", "PerConnectionBufferLimitBytes",
		"MaxConnectionAge", "Key", "RequireExpiration", "ClockSkewSeconds", "ClockSkew", "Audiences", "Inline", "URI", "CA",
		"FailedStatusInMetadata", "KeepToken", "Forward", "ApplyDefaultConfigWithoutWarming", "ConfigSource", "TypeUrls",
		"HttpUri", "CacheDuration", "AsyncFetch", "RetryPolicy", "EngineType", "Interval", "EnforcementType", "Plaintext",
		"Target", "MaxBodyBytes", "Address", "HostRewriteSpecifier", "TCPCalls", "Destinations",
	}
}
