package spec

import (
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// laterKinds belong to the language, but not yet to this version.
var laterKinds = []string{"Gateway", "Secret"}

// laterFields belong to the language, but not yet to this version; by message.
var laterFields = map[protoreflect.Name][]string{
	"Workload": {"attest"},
	"Caller":   {"gateways", "anonymous"},
	"Subject":  {"gateway"},
}

// kinds are the kinds that this version takes.
var kinds = []string{
	KindMesh, KindWorkload, KindService, KindGrant, KindBlock, KindIdentityProvider, KindSegment, KindAssertion, KindException,
}

// fieldNamed is the field of md that a user writes as name, or nil.
func fieldNamed(md protoreflect.MessageDescriptor, name string) protoreflect.FieldDescriptor {
	for i := range md.Fields().Len() {
		if fd := md.Fields().Get(i); fd.JSONName() == name {
			return fd
		}
	}
	return nil
}

// fieldNames are all fields of md as a user writes them.
func fieldNames(md protoreflect.MessageDescriptor) []string {
	names := make([]string, md.Fields().Len())
	for i := range names {
		names[i] = md.Fields().Get(i).JSONName()
	}
	return names
}

// didYouMean is a hint with the one of names that is nearest to s, or empty when
// none is near.
func didYouMean(s string, names []string) string {
	if len(s) > 64 {
		return ""
	}
	flat := strings.NewReplacer("_", "", "-", "")
	best, least := "", 1+min(2, len(s)/2)
	for _, name := range names {
		d := distance(strings.ToLower(flat.Replace(s)), strings.ToLower(name))
		if d < least {
			best, least = name, d
		}
	}
	if best == "" {
		return ""
	}
	return "Did you mean \"" + best + "\"?"
}

// distance is how many bytes must be put in, taken out, replaced or swapped with
// their neighbour to make b of a (optimal string alignment).
func distance(a, b string) int {
	var before []int
	prev := make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := range len(a) {
		row := make([]int, len(b)+1)
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			row[j+1] = min(prev[j]+cost, prev[j+1]+1, row[j]+1)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				row[j+1] = min(row[j+1], before[j-1]+1)
			}
		}
		before, prev = prev, row
	}
	return prev[len(b)]
}
