package rbactest

import (
	"fmt"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
)

// vocabulary is every message that this package takes and the fields that may be
// set in it. A field with "~" has no part in a verdict; what it holds is not
// looked at. Everything else is interpreted, or refused where it is met.
var vocabulary = map[protoreflect.FullName]string{
	"envoy.config.core.v3.TypedExtensionConfig":  "name typed_config",
	"envoy.config.core.v3.ExtensionConfigSource": "config_source~ default_config apply_default_config_without_warming type_urls",

	// Listeners.
	"envoy.config.listener.v3.Listener":                                                               "name address filter_chains listener_filters~ listener_filters_timeout~ continue_on_listener_filters_timeout~ traffic_direction enable_reuse_port~ per_connection_buffer_limit_bytes~ access_log~",
	"envoy.config.core.v3.Address":                                                                    "socket_address",
	"envoy.config.core.v3.SocketAddress":                                                              "address port_value",
	"envoy.config.core.v3.CidrRange":                                                                  "address_prefix prefix_len",
	"envoy.config.listener.v3.FilterChain":                                                            "name filter_chain_match filters transport_socket transport_socket_connect_timeout~",
	"envoy.config.listener.v3.FilterChainMatch":                                                       "transport_protocol source_prefix_ranges direct_source_prefix_ranges",
	"envoy.config.listener.v3.Filter":                                                                 "name typed_config config_discovery",
	"envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy":                                          "access_log~ cluster max_downstream_connection_duration~ max_early_data_bytes~ stat_prefix~ upstream_connect_mode~",
	"envoy.extensions.filters.network.set_filter_state.v3.Config":                                     "on_new_connection",
	"envoy.extensions.filters.network.rbac.v3.RBAC":                                                   "rules matcher shadow_rules shadow_matcher stat_prefix~ shadow_rules_stat_prefix~ enforcement_type~",
	"envoy.config.core.v3.TransportSocket":                                                            "name typed_config",
	"envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext":                                  "common_tls_context require_client_certificate disable_stateless_session_resumption~ disable_stateful_session_resumption~",
	"envoy.extensions.transport_sockets.tls.v3.CommonTlsContext":                                      "alpn_protocols~ tls_certificate_sds_secret_configs~ tls_params~ validation_context_sds_secret_config combined_validation_context",
	"envoy.extensions.transport_sockets.tls.v3.SdsSecretConfig":                                       "name sds_config~",
	"envoy.extensions.transport_sockets.tls.v3.Secret":                                                "name validation_context",
	"envoy.extensions.transport_sockets.tls.v3.CertificateValidationContext":                          "custom_validator_config match_typed_subject_alt_names",
	"envoy.extensions.transport_sockets.tls.v3.SubjectAltNameMatcher":                                 "san_type matcher",
	"envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig":                             "trust_domains",
	"envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig.TrustDomain":                 "name trust_bundle~",
	"envoy.extensions.transport_sockets.tls.v3.CommonTlsContext.CombinedCertificateValidationContext": "default_validation_context validation_context_sds_secret_config",

	// Connection managers and their filters.
	"envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager":               "access_log~ codec_type~ common_http_protocol_options drain_timeout~ early_header_mutation_extensions forward_client_cert_details~ http2_protocol_options~ http_filters internal_address_config~ local_reply_config~ max_request_headers_kb~ merge_slashes normalize_path path_with_escaped_slashes_action preserve_external_request_id~ rds request_headers_timeout~ route_config server_name~ server_header_transformation~ set_current_client_cert_details~ stat_prefix~ stream_idle_timeout~ strip_any_host_port strip_trailing_host_dot upgrade_configs use_remote_address",
	"envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.UpgradeConfig": "upgrade_type",
	"envoy.config.core.v3.HttpProtocolOptions":                                                        "headers_with_underscores_action idle_timeout~ max_connection_duration~ max_headers_count~ max_stream_duration~",
	"envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter":                          "name typed_config config_discovery",
	"envoy.extensions.filters.network.http_connection_manager.v3.Rds":                                 "config_source~ route_config_name",
	"envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation":                   "mutations",
	"envoy.config.common.mutation_rules.v3.HeaderMutation":                                            "remove",
	"envoy.extensions.filters.http.filter_chain.v3.FilterChainConfig":                                 "default_filter_chain",
	"envoy.extensions.filters.http.filter_chain.v3.FilterChain":                                       "filters",
	"envoy.extensions.filters.http.router.v3.Router":                                                  "suppress_envoy_headers~",
	"envoy.extensions.filters.http.health_check.v3.HealthCheck":                                       "headers pass_through_mode",
	"envoy.extensions.filters.http.rbac.v3.RBAC":                                                      "rules matcher shadow_rules shadow_matcher rules_stat_prefix~ shadow_rules_stat_prefix~",
	"envoy.extensions.filters.http.set_filter_state.v3.Config":                                        "on_request_headers",
	"envoy.extensions.filters.common.set_filter_state.v3.FilterStateValue":                            "object_key factory_key format_string skip_if_empty",
	"envoy.config.core.v3.SubstitutionFormatString":                                                   "text_format_source omit_empty_values",
	"envoy.config.core.v3.DataSource":                                                                 "inline_string",
	"envoy.extensions.filters.http.header_to_metadata.v3.Config":                                      "request_rules",
	"envoy.extensions.filters.http.header_to_metadata.v3.Config.Rule":                                 "header on_header_present on_header_missing remove",
	"envoy.extensions.filters.http.header_to_metadata.v3.Config.KeyValuePair":                         "metadata_namespace key value type regex_value_rewrite",
	"envoy.type.matcher.v3.RegexMatchAndSubstitute":                                                   "pattern substitution",
	"envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication":                                    "providers rules strip_failure_response~ stat_prefix~",
	"envoy.extensions.filters.http.jwt_authn.v3.JwtProvider":                                          "issuer audiences~ local_jwks~ remote_jwks~ forward from_headers payload_in_metadata failed_status_in_metadata~ clock_skew_seconds~ claim_to_headers require_expiration~ jwt_cache_config~",
	"envoy.extensions.filters.http.jwt_authn.v3.JwtHeader":                                            "name value_prefix",
	"envoy.extensions.filters.http.jwt_authn.v3.JwtClaimToHeader":                                     "header_name claim_name claim_path",
	"envoy.extensions.filters.http.jwt_authn.v3.JwtClaimToHeader.PathSegment":                         "key",
	"envoy.extensions.filters.http.jwt_authn.v3.RequirementRule":                                      "match requires",
	"envoy.extensions.filters.http.jwt_authn.v3.JwtRequirement":                                       "provider_name requires_any allow_missing allow_missing_or_failed",
	"envoy.extensions.filters.http.jwt_authn.v3.JwtRequirementOrList":                                 "requirements",
	"google.protobuf.Empty":                                     "",
	"envoy.extensions.filters.http.ext_authz.v3.ExtAuthz":       "grpc_service~ transport_api_version~ failure_mode_allow with_request_body~ decoder_header_mutation_rules validate_mutations~ stat_prefix~ status_on_error~ include_peer_certificate~ metadata_context_namespaces~ allowed_headers~ enable_dynamic_metadata_ingestion~",
	"envoy.config.common.mutation_rules.v3.HeaderMutationRules": "disallow_system disallow_all~ allow_expression~ disallow_expression~ disallow_is_error~",

	// Routes.
	"envoy.config.route.v3.RouteConfiguration":        "name virtual_hosts request_headers_to_remove~ response_headers_to_remove~",
	"envoy.config.route.v3.VirtualHost":               "name domains routes request_headers_to_remove~ response_headers_to_remove~",
	"envoy.config.route.v3.Route":                     "name match route direct_response response_headers_to_add~ typed_per_filter_config~",
	"envoy.config.route.v3.RouteMatch":                "prefix headers",
	"envoy.config.route.v3.RouteAction":               "cluster timeout~ idle_timeout~ max_stream_duration~ host_rewrite_literal~ upgrade_configs",
	"envoy.config.route.v3.RouteAction.UpgradeConfig": "upgrade_type",
	"envoy.config.route.v3.DirectResponseAction":      "status body~",

	// RBAC by rules.
	"envoy.config.rbac.v3.RBAC":                    "action policies",
	"envoy.config.rbac.v3.Policy":                  "permissions principals condition~",
	"envoy.config.rbac.v3.Permission":              "any and_rules or_rules not_rule header destination_port sourced_metadata",
	"envoy.config.rbac.v3.SourcedMetadata":         "metadata_matcher metadata_source",
	"envoy.config.rbac.v3.Permission.Set":          "rules",
	"envoy.config.rbac.v3.Principal":               "any and_ids or_ids not_id authenticated direct_remote_ip remote_ip header sourced_metadata",
	"envoy.config.rbac.v3.Principal.Set":           "ids",
	"envoy.config.rbac.v3.Principal.Authenticated": "principal_name",
	"envoy.config.rbac.v3.Action":                  "name action",
	"envoy.config.route.v3.HeaderMatcher":          "name string_match present_match invert_match",

	// Matchers.
	"xds.core.v3.TypedExtensionConfig":                                                    "name typed_config",
	"xds.type.matcher.v3.Matcher":                                                         "matcher_list matcher_tree on_no_match",
	"xds.type.matcher.v3.Matcher.OnMatch":                                                 "action matcher",
	"xds.type.matcher.v3.Matcher.MatcherList":                                             "matchers",
	"xds.type.matcher.v3.Matcher.MatcherList.FieldMatcher":                                "predicate on_match",
	"xds.type.matcher.v3.Matcher.MatcherList.Predicate":                                   "single_predicate not_matcher or_matcher and_matcher",
	"xds.type.matcher.v3.Matcher.MatcherList.Predicate.PredicateList":                     "predicate",
	"xds.type.matcher.v3.Matcher.MatcherList.Predicate.SinglePredicate":                   "input value_match custom_match",
	"xds.type.matcher.v3.Matcher.MatcherTree":                                             "input exact_match_map prefix_match_map",
	"xds.type.matcher.v3.Matcher.MatcherTree.MatchMap":                                    "map",
	"xds.type.matcher.v3.StringMatcher":                                                   "exact prefix suffix contains safe_regex ignore_case",
	"xds.type.matcher.v3.RegexMatcher":                                                    "regex google_re2",
	"xds.type.matcher.v3.RegexMatcher.GoogleRE2":                                          "",
	"xds.type.matcher.v3.CelMatcher":                                                      "expr_match description~",
	"xds.type.v3.CelExpression":                                                           "cel_expr_parsed~",
	"xds.type.matcher.v3.HttpAttributesCelMatchInput":                                     "",
	"envoy.type.matcher.v3.StringMatcher":                                                 "exact prefix suffix contains safe_regex ignore_case",
	"envoy.type.matcher.v3.RegexMatcher":                                                  "regex google_re2~",
	"envoy.type.matcher.v3.MetadataMatcher":                                               "filter path value invert",
	"envoy.type.matcher.v3.MetadataMatcher.PathSegment":                                   "key",
	"envoy.type.matcher.v3.ValueMatcher":                                                  "null_match string_match bool_match present_match double_match list_match or_match",
	"envoy.type.matcher.v3.ValueMatcher.NullMatch":                                        "",
	"envoy.type.matcher.v3.ListMatcher":                                                   "one_of",
	"envoy.type.matcher.v3.OrMatcher":                                                     "value_matchers",
	"envoy.type.matcher.v3.DoubleMatcher":                                                 "range exact",
	"envoy.type.v3.DoubleRange":                                                           "start end",
	"envoy.type.matcher.v3.HttpRequestHeaderMatchInput":                                   "header_name",
	"envoy.extensions.matching.common_inputs.ssl.v3.UriSanInput":                          "",
	"envoy.extensions.matching.common_inputs.network.v3.SourceIPInput":                    "",
	"envoy.extensions.matching.common_inputs.network.v3.DirectSourceIPInput":              "",
	"envoy.extensions.matching.common_inputs.network.v3.DestinationPortInput":             "",
	"envoy.extensions.matching.common_inputs.network.v3.FilterStateInput":                 "key",
	"envoy.extensions.matching.common_inputs.network.v3.DynamicMetadataInput":             "filter path",
	"envoy.extensions.matching.common_inputs.network.v3.DynamicMetadataInput.PathSegment": "key",
	"envoy.extensions.matching.input_matchers.runtime_fraction.v3.RuntimeFraction":        "runtime_fraction",
	"envoy.extensions.matching.input_matchers.ip.v3.Ip":                                   "cidr_ranges stat_prefix~",
	"envoy.extensions.matching.input_matchers.metadata.v3.Metadata":                       "value invert",
	"envoy.config.core.v3.RuntimeFractionalPercent":                                       "default_value runtime_key",
	"envoy.type.v3.FractionalPercent":                                                     "numerator denominator",
	"google.protobuf.BoolValue":                                                           "value",
	"google.protobuf.UInt32Value":                                                         "value",
}

// known reports what of m, and of everything below it, is not in the vocabulary.
func (p *Proxy) known(m protoreflect.Message, at string) error {
	if a, ok := m.Interface().(*anypb.Any); ok {
		inner, err := p.decode(a)
		if err != nil {
			return fmt.Errorf("%s: %w", at, err)
		}
		return p.known(inner.ProtoReflect(), at)
	}
	name := m.Descriptor().FullName()
	fields, ok := vocabulary[name]
	if !ok {
		return fmt.Errorf("%s: a %s is unknown here", at, name)
	}
	if len(m.GetUnknown()) > 0 {
		return fmt.Errorf("%s: a %s has fields of another version", at, name)
	}
	var err error
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		field := string(fd.Name())
		switch listed, weighs := word(fields, field); {
		case !listed:
			err = fmt.Errorf("%s: %s of a %s is unknown here", at, field, name)
		case weighs:
			err = p.knownValue(fd, v, at)
		}
		return err == nil
	})
	return err
}

func (p *Proxy) knownValue(fd protoreflect.FieldDescriptor, v protoreflect.Value, at string) error {
	var err error
	switch {
	case fd.IsMap():
		if fd.MapValue().Message() != nil {
			v.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool {
				err = p.known(v.Message(), at)
				return err == nil
			})
		}
	case fd.Message() == nil:
	case fd.IsList():
		for i := 0; i < v.List().Len() && err == nil; i++ {
			err = p.known(v.List().Get(i).Message(), at)
		}
	default:
		err = p.known(v.Message(), at)
	}
	return err
}

// word finds a field in a list of words.
func word(words, field string) (listed, weighs bool) {
	for w := range strings.FieldsSeq(words) {
		if name, light := strings.CutSuffix(w, "~"); name == field {
			return true, !light
		}
	}
	return false, false
}
