package spec

import "strings"

// Code is one row of the table of problem codes. Codes are API: one is never
// given another meaning and never used again after it has gone.
type Code struct {
	Code    string // "ZT1102"
	Meaning string // what is wrong, as a sentence without a full stop
	Hint    string // what to do where the problem has no closer hint
}

// Bytes and YAML, before anything is understood.
const (
	codeTooLarge         = "ZT1001"
	codeDocumentTooLarge = "ZT1002"
	codeTooManyDocuments = "ZT1003"
	codeTooDeep          = "ZT1004"
	codeTooManyValues    = "ZT1005"
	codeInvalidUTF8      = "ZT1006"
	codeUTF16            = "ZT1007"
	codeBOM              = "ZT1008"
	codeControl          = "ZT1009"
	codeNotYAML          = "ZT1010"
	codeAlias            = "ZT1011"
	codeTag              = "ZT1012"
	codeTooManyProblems  = "ZT1013"
)

// The form of one document.
const (
	codeNotDocument  = "ZT1101"
	codeUnknownField = "ZT1102"
	codeDuplicateKey = "ZT1103"
	codeWrongType    = "ZT1104"
	codeMissing      = "ZT1105"
	codeNull         = "ZT1106"
	codeEmptyList    = "ZT1107"
	codeRange        = "ZT1108"
	codeDuration     = "ZT1109"
	codeUnsupported  = "ZT1110"
	codeUnknownKind  = "ZT1111"
	codeAPIVersion   = "ZT1112"
	codeBadValue     = "ZT1113"
	codeBadName      = "ZT1114"
	codeTooLong      = "ZT1115"
	codeTimestamp    = "ZT1116"
)

// The set of documents, and the mesh.
const (
	codeDuplicateDocument = "ZT1201"
	codeSecondMesh        = "ZT1202"
	codeMeshNamespace     = "ZT1203"
	codeNotInMesh         = "ZT1204"
	codeTrustDomain       = "ZT1205"
	codeReservedLabel     = "ZT1206"
	codeForeignDomain     = "ZT1207"
	codeCA                = "ZT1208"
)

// Workload.
const (
	codePortNameTwice    = "ZT1301"
	codePortNumberTwice  = "ZT1302"
	codeTarget           = "ZT1303"
	codeReservedPort     = "ZT1304"
	codeLocalPortTwice   = "ZT1305"
	codeTargetLoop       = "ZT1306"
	codeCallNotTCP       = "ZT1307"
	codeCallPortRequired = "ZT1308"
	codePortOption       = "ZT1309"
	codeHealthPath       = "ZT1310"
	codeAuthorizer       = "ZT1311"
)

// Grant.
const (
	codeCaller            = "ZT1401"
	codeOtherCallee       = "ZT1402"
	codePortsRequired     = "ZT1403"
	codeHTTPOnTCP         = "ZT1404"
	codeMixed             = "ZT1405"
	codeMethod            = "ZT1406"
	codeMethodRefused     = "ZT1407"
	codeMethodKind        = "ZT1408"
	codePathsOnGRPC       = "ZT1409"
	codePath              = "ZT1410"
	codeUsersAlone        = "ZT1411"
	codeTargetOne         = "ZT1412"
	codeWide              = "ZT1413"
	codeWidePorts         = "ZT1414"
	codeClaim             = "ZT1415"
	codeClaimValue        = "ZT1416"
	codeHeader            = "ZT1417"
	codeHeaderValue       = "ZT1418"
	codeForwardedHeader   = "ZT1419"
	codeCIDR              = "ZT1420"
	codeZone              = "ZT1421"
	codeClock             = "ZT1422"
	codeCEL               = "ZT1423"
	codeUpgrade           = "ZT1424"
	codeUpgradeMethod     = "ZT1425"
	codeConditionOnTCP    = "ZT1426"
	codeServerFirst       = "ZT1427"
	codeExternalCondition = "ZT1428"
	codeSPIFFEID          = "ZT1429"
	codeAliasID           = "ZT1430"
	codeNotAdmitted       = "ZT1431"
	codeUserOnTCP         = "ZT1432"
)

// References.
const (
	codeReference     = "ZT1501"
	codeNoWorkload    = "ZT1502"
	codeNoNamespace   = "ZT1503"
	codeNoService     = "ZT1504"
	codeNoPort        = "ZT1505"
	codeNoGrant       = "ZT1506"
	codeNoProvider    = "ZT1507"
	codeNoSegment     = "ZT1508"
	codeNoTrustDomain = "ZT1509"
)

// Assertion.
const (
	codeRequest         = "ZT1601"
	codeByWithDeny      = "ZT1602"
	codeRequestProtocol = "ZT1603"
	codeRequestPort     = "ZT1604"
	codeSubject         = "ZT1605"
	codeSource          = "ZT1606"
	codeTestOfTCP       = "ZT1607"
	codeStatement       = "ZT1608"
)

// Service.
const (
	codeServiceOne    = "ZT1701"
	codeForeignMember = "ZT1702"
	codeServiceName   = "ZT1703"
	codeMemberPorts   = "ZT1704"
	codeExternalHost  = "ZT1705"
	codeHostTwice     = "ZT1706"
	codeExternalTLS   = "ZT1707"
)

// IdentityProvider.
const (
	codeIssuerTwice     = "ZT1801"
	codeURL             = "ZT1802"
	codePlainURL        = "ZT1803"
	codeReservedAddress = "ZT1804"
	codeJWKSOne         = "ZT1805"
	codeJWKS            = "ZT1806"
	codeClaimTwice      = "ZT1807"
	codeForward         = "ZT1808"
	codeForwardTwice    = "ZT1809"
)

// Segment, Block and Exception.
const (
	codeTwoSegments  = "ZT1901"
	codeBlockOne     = "ZT1902"
	codeForeignBlock = "ZT1903"
	codeSubjectForm  = "ZT1904"
	codePeers        = "ZT1905"
	codeNoUse        = "ZT1906"
)

// Codes is every problem that Parse and Check report, in order of the codes.
// docs/problems.md is generated from it.
func Codes() []Code { return append([]Code(nil), codes...) }

var codes = []Code{
	{codeTooLarge, "The files are larger than 64 MiB together", "Split them into several applies, by namespace."},
	{codeDocumentTooLarge, "A document is larger than 1 MiB", "Split it into several documents."},
	{codeTooManyDocuments, "There are more than 200,000 documents", "Split them into several applies, by namespace."},
	{codeTooDeep, "Values are nested more than 32 deep", "No document needs that; is a bracket missing?"},
	{codeTooManyValues, "A document holds more than 64,000 lines and separators", "Split it into several documents."},
	{codeInvalidUTF8, "The file is not valid UTF-8", "Save it as UTF-8."},
	{codeUTF16, "The file is UTF-16 or UTF-32", "Save it as UTF-8 without a byte order mark."},
	{codeBOM, "The file begins with, or holds, a byte order mark", "Save it as UTF-8 without a byte order mark."},
	{codeControl, "There is a NUL or another control character, written as it is or as an escape", "Remove it; only line feed and tab may stand in text."},
	{codeNotYAML, "This is neither YAML nor JSON", "Check indentation, quotes and brackets at and before this line."},
	{codeAlias, "Anchors, aliases and merge keys are refused", "Write the value out in each place."},
	{codeTag, "Tags (\"!!str\", \"!x\") and directives (\"%YAML\") are refused", "Remove it; quote a value that is a string."},
	{codeTooManyProblems, "Reading stopped after 1,000 problems", "Mend these first."},

	{codeNotDocument, "A document is not a mapping of apiVersion, kind, metadata and spec", "Begin with \"apiVersion: " + APIVersion + "\"; separate documents with a line \"---\"."},
	{codeUnknownField, "The field does not exist", "See the reference of the kind for its fields."},
	{codeDuplicateKey, "The key stands twice in one mapping", "Keep one of them."},
	{codeWrongType, "The value has another type than the field", "Quote what is a string; write numbers and true or false without quotes."},
	{codeMissing, "A required field is missing", "Add it."},
	{codeNull, "The field has no value", "Give it a value or remove the field."},
	{codeEmptyList, "The list or mapping is empty: that would mean nothing, never everything", "Name something, or remove the field."},
	{codeRange, "The number or duration is out of range", "Choose a value within the range."},
	{codeDuration, "This is not a duration", "Write a number with a unit: 90s, 30m, 2h or 1h30m."},
	{codeUnsupported, "The kind, field or form belongs to the language but is not supported yet by this version", "Remove it; the spec would not be enforced as written."},
	{codeUnknownKind, "The kind does not exist", "The kinds are " + strings.Join(kinds, ", ") + "."},
	{codeAPIVersion, "The apiVersion is not " + APIVersion, "Write \"apiVersion: " + APIVersion + "\"."},
	{codeBadValue, "The value is not one of those that the field takes", "Choose one of the values listed."},
	{codeBadName, "The name is not of the form required", "A DNS label: at most 63 of a-z, 0-9 and inner hyphens."},
	{codeTooLong, "The text, list or map is longer than the field allows", "Shorten it, or split it into several documents."},
	{codeTimestamp, "This is not a point in time", "Write date, time and zone, to the second: 2030-01-31T18:00:00Z or 2030-01-31T19:00:00+01:00."},

	{codeDuplicateDocument, "Two documents have the same kind, namespace and name", "Rename one of them or remove it."},
	{codeSecondMesh, "There is more than one Mesh", "Keep one of them."},
	{codeMeshNamespace, "The kind stands only in the namespace \"mesh\", and this is another", "Write \"namespace: mesh\"."},
	{codeNotInMesh, "The kind may not stand in the reserved namespace \"mesh\"", "Give it a namespace of its own."},
	{codeTrustDomain, "The trust domain is not that of the cluster, which never changes", "Write the trust domain that was given to `ztd init`."},
	{codeReservedLabel, "A label or annotation begins with \"ztmesh.dev/\", which is for ztmesh itself", "Use a prefix of your own."},
	{codeForeignDomain, "An alias or a federated trust domain stands twice, or is the mesh's own or that of a control plane", "Name each other trust domain once."},
	{codeCA, "This is not one or more CA certificates as PEM", "Give the certificates of the CAs, and nothing else; a certificate that is no CA's verifies nobody."},

	{codePortNameTwice, "Two ports of a workload have the same name", "Rename one of them."},
	{codePortNumberTwice, "Two ports of a workload have the same number", "Change one of them."},
	{codeTarget, "The target is not a loopback address and port", "Write 127.0.0.1:<port> or [::1]:<port>."},
	{codeReservedPort, "Port 15001 is the proxy's own, for the calls of its applications", "Choose another port."},
	{codeLocalPortTwice, "Two tcpCalls of a workload have the same localPort", "Change one of them."},
	{codeTargetLoop, "A port's target is a localPort of the same workload: peers would be passed on in its name", "Change the target or the localPort."},
	{codeCallNotTCP, "A tcpCall leads to a port that is not tcp", "Call HTTP and gRPC by host name through port 15001: <service>.<namespace>.mesh."},
	{codeCallPortRequired, "The service of a tcpCall has several tcp ports", "Name one of them: \"service:port-name\"."},
	{codePortOption, "The option does not fit the protocol of the port", "healthPath and allowEncodedPaths are for http and http2, upgrades for http, serverFirst for tcp."},
	{codeHealthPath, "The healthPath is not a path", "Write an absolute path such as /healthz."},
	{codeAuthorizer, "An external authorizer is given for a workload without a port whose requests it could judge", "Remove it, or serve http, http2 or grpc."},

	{codeCaller, "A caller has not exactly one of workloads, namespaces, segments, spiffeIDs and anyWorkload", "Keep one; write one grant for each of them."},
	{codeOtherCallee, "A grant names a service of another namespace: the callee's owner decides", "Write the grant in the namespace of the service."},
	{codePortsRequired, "A grant to a service with several ports does not say which", "Add \"ports\" with the names of those that are meant."},
	{codeHTTPOnTCP, "Methods or paths are given for a tcp port, which has none", "Remove them, or grant the other ports apart."},
	{codeMixed, "Methods or paths are given for ports of different protocols", "Write one grant for each protocol."},
	{codeMethod, "This is neither an HTTP method nor a gRPC method", "Write GET, POST, …, or pkg.Service/Method or pkg.Service/* for gRPC; leave methods out for all."},
	{codeMethodRefused, "CONNECT and TRACE are always refused, so they cannot be granted", "Remove it."},
	{codeMethodKind, "The method does not fit the port's protocol", "gRPC ports take pkg.Service/Method or pkg.Service/*, HTTP ports take GET, POST, …"},
	{codePathsOnGRPC, "Paths are given for a grpc port", "Write methods: [pkg.Service/Method] instead."},
	{codePath, "The path is not canonical, so it would never match", "Write an absolute path such as /orders/7, or /orders/** for any rest."},
	{codeUsersAlone, "Users are named without a caller", "Add workloads, namespaces, segments, spiffeIDs or anyWorkload: workload and user must both match."},
	{codeTargetOne, "A target has not exactly one of services, namespaces and allServices", "Keep one; write one grant for each of them."},
	{codeWide, "Only grants of the namespace \"mesh\" reach across namespaces, and they name no services", "Write a grant to services in their own namespace; use namespaces or allServices in \"mesh\"."},
	{codeWidePorts, "A grant that reaches across services does not say which ports", "Add \"ports\" with the names of those that are meant."},
	{codeClaim, "The provider declares no such claim", "Declare it in the IdentityProvider's claims, with its kind."},
	{codeClaimValue, "The value is not of the claim's kind", "A boolean is \"true\" or \"false\"; only a list has several values in a test."},
	{codeHeader, "This header can neither be matched nor set", "Name an end-to-end header of your own in lower case, such as x-team."},
	{codeHeaderValue, "The text can not be the value of a header", "Write visible ASCII characters without spaces around them."},
	{codeForwardedHeader, "The header carries a verified claim: no one else may set it and no condition may name it", "Use another header."},
	{codeCIDR, "This is not an address range in canonical form", "Write it as 10.0.0.0/8, 192.0.2.7/32 or fd00::/8, with all bits after the prefix zero."},
	{codeZone, "The time zone does not exist", "Write a name of the IANA time zone database, such as Europe/Berlin or UTC."},
	{codeClock, "The window is not between two times of day", "Write start and end as HH:MM; end may be 24:00, and before start to cross midnight."},
	{codeCEL, "The expression is refused", "The variables are " + strings.Join(CELVariables(), ", ") + "; docs/spec/grant.md has the functions."},
	{codeUpgrade, "A grant names an upgrade that a port in its reach does not take", "Add \"upgrades\" to the port, which is http, or name other ports."},
	{codeUpgradeMethod, "An upgrade is always a GET", "Remove methods; write another grant for other requests."},
	{codeConditionOnTCP, "Users, headers or an expression are named for a tcp port, whose connections have none", "Remove them, or grant the other ports apart."},
	{codeServerFirst, "A grant to a serverFirst port has a condition or an end, which the TLS handshake does not know", "Remove when and until, or grant the other ports apart."},
	{codeExternalCondition, "The condition can not be judged for an external service: the caller's own proxy decides, and it sees no user and no peer", "Remove it, or grant the other services apart."},
	{codeSPIFFEID, "This is not the SPIFFE ID of a workload", "Write spiffe://<trust domain>/<path>."},
	{codeAliasID, "The SPIFFE ID is of a former name of the trust domain, which is the same caller as the current one", "Write the ID of the current trust domain."},
	{codeNotAdmitted, "A caller is in no segment that the segment of the service admits", "Add the caller's segment to \"admits\", or remove the caller from the grant."},
	{codeUserOnTCP, "The segment of the service requires a user, and a tcp connection has none", "Name other ports, or take requireUser from the segment."},

	{codeReference, "This is not a reference", "Write name, or namespace/name."},
	{codeNoWorkload, "The workload does not exist", "Check the name; a workload of another namespace is namespace/name."},
	{codeNoNamespace, "The namespace has no workload", "Check the name."},
	{codeNoService, "The service does not exist", "Check the name; a workload is a service when it has \"serves\"."},
	{codeNoPort, "The service has no such port", "Name a port as its workload's \"serves\" does."},
	{codeNoGrant, "The grant does not exist", "Check the name; a grant of another namespace is namespace/name."},
	{codeNoProvider, "The identity provider does not exist", "Check the name; identity providers stand in the namespace \"mesh\"."},
	{codeNoSegment, "The segment does not exist", "Check the name; segments stand in the namespace \"mesh\"."},
	{codeNoTrustDomain, "The trust domain is not known", "Name it in the Mesh's federation, with its bundle."},

	{codeRequest, "This is not a request", "Write \"GET orders /orders/7\", \"GRPC svc pkg.Service/Method\" or \"TCP db\"; a port is named as orders:http."},
	{codeByWithDeny, "\"by\" is given for a denial, which no grant makes", "Remove \"by\", or want allow."},
	{codeRequestProtocol, "The request does not fit the port's protocol", "tcp ports take TCP, grpc ports take GRPC or an HTTP request, the others an HTTP request."},
	{codeRequestPort, "The service has several ports and the request does not say which", "Name one of them: \"GET orders:http /orders/7\"."},
	{codeSubject, "The caller of a test is not exactly one of workload and spiffeID", "Keep one of them."},
	{codeSource, "The source of a test is not an address", "Write an IP address such as 10.1.2.3."},
	{codeTestOfTCP, "A test of a tcp connection has headers or a user", "Remove them."},
	{codeStatement, "A statement names users: it speaks of all of them", "Remove them."},

	{codeServiceOne, "A Service has not exactly one of workloads and external", "Keep one of them."},
	{codeForeignMember, "A Service has a workload of another namespace", "Name workloads of the service's own namespace."},
	{codeServiceName, "A Service has the name of a workload that serves ports", "Rename one of them: callers would not know which is meant."},
	{codeMemberPorts, "Two workloads of a Service differ in a port of one name", "Give ports of one name the same number and protocol, or other names."},
	{codeExternalHost, "This is not the name of an external host", "Write a DNS name in lower case such as api.example.com; an address or a name of the mesh is none."},
	{codeHostTwice, "Two external services have the same host", "Keep it in one of them."},
	{codeExternalTLS, "An external service is called without TLS", "Use TLS, or write an Exception (finding: plaintext-egress) for the service."},

	{codeIssuerTwice, "Two identity providers have the same issuer", "Keep one of them."},
	{codeURL, "This is not a URL in canonical form", "Write https://host/path, with the host in lower case."},
	{codePlainURL, "The issuer or its keys are at an http URL", "Use https, or write an Exception (finding: plaintext-jwks) for the provider in the namespace \"mesh\"."},
	{codeReservedAddress, "The host is a reserved address: loopback, link-local, multicast, metadata or unspecified", "Name another host, or write an Exception (finding: reserved-address) whose peers have the address."},
	{codeJWKSOne, "The keys of a provider are not exactly one of uri and inline", "Keep one of them."},
	{codeJWKS, "This is not a JWK Set of public keys for signatures", "Give the public keys of the provider only, of kty RSA, EC or OKP and with use \"sig\"."},
	{codeClaimTwice, "A claim is declared twice", "Keep one of them."},
	{codeForward, "A header carries a claim that is not declared, or is a list", "Name a declared claim of kind string or boolean, or \"sub\"."},
	{codeForwardTwice, "Two providers forward claims in the same header", "Use a header of its own for each of them."},

	{codeTwoSegments, "A workload would be in two segments", "Keep it in one of them."},
	{codeBlockOne, "A Block has not exactly one kind of caller, or else services alone", "Keep one of workloads, namespaces, trustDomains, spiffeIDs and users; write one Block for each."},
	{codeForeignBlock, "The Block of a namespace acts neither on its own callers nor on its own services", "Name its own callers or services, or write the Block in the namespace \"mesh\"."},
	{codeSubjectForm, "This is not what an Exception can be about", "Name the port as \"service:port\", the external service or the provider, of the exception's own namespace."},
	{codePeers, "An Exception does not say which addresses it is about, or says so without need", "Give peers for the findings plaintext and reserved-address, and only for these."},
	{codeNoUse, "What is written has no effect", "Remove it."},
}

// hintOf is the hint of the table for code.
func hintOf(code string) string {
	for _, c := range codes {
		if c.Code == code {
			return c.Hint
		}
	}
	return ""
}
