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
)

// Grant.
const (
	codeCaller        = "ZT1401"
	codeOtherCallee   = "ZT1402"
	codePortsRequired = "ZT1403"
	codeHTTPOnTCP     = "ZT1404"
	codeMixed         = "ZT1405"
	codeMethod        = "ZT1406"
	codeMethodRefused = "ZT1407"
	codeMethodKind    = "ZT1408"
	codePathsOnGRPC   = "ZT1409"
	codePath          = "ZT1410"
)

// References.
const (
	codeReference   = "ZT1501"
	codeNoWorkload  = "ZT1502"
	codeNoNamespace = "ZT1503"
	codeNoService   = "ZT1504"
	codeNoPort      = "ZT1505"
	codeNoGrant     = "ZT1506"
)

// Assertion.
const (
	codeRequest         = "ZT1601"
	codeByWithDeny      = "ZT1602"
	codeRequestProtocol = "ZT1603"
	codeRequestPort     = "ZT1604"
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
	{codeMeshNamespace, "The Mesh is not in the namespace \"mesh\"", "Write \"namespace: mesh\"."},
	{codeNotInMesh, "The kind may not stand in the reserved namespace \"mesh\"", "Give it a namespace of its own."},
	{codeTrustDomain, "The trust domain is not that of the cluster, which never changes", "Write the trust domain that was given to `ztd init`."},

	{codePortNameTwice, "Two ports of a workload have the same name", "Rename one of them."},
	{codePortNumberTwice, "Two ports of a workload have the same number", "Change one of them."},
	{codeTarget, "The target is not a loopback address and port", "Write 127.0.0.1:<port> or [::1]:<port>."},
	{codeReservedPort, "Port 15001 is the proxy's own, for the calls of its applications", "Choose another port."},
	{codeLocalPortTwice, "Two tcpCalls of a workload have the same localPort", "Change one of them."},
	{codeTargetLoop, "A port's target is a localPort of the same workload: peers would be passed on in its name", "Change the target or the localPort."},
	{codeCallNotTCP, "A tcpCall leads to a port that is not tcp", "Call HTTP and gRPC by host name through port 15001: <service>.<namespace>.mesh."},
	{codeCallPortRequired, "The service of a tcpCall has several tcp ports", "Name one of them: \"service:port-name\"."},

	{codeCaller, "A caller has not exactly one of workloads, namespaces and anyWorkload", "Keep one; write one grant for each of them."},
	{codeOtherCallee, "A grant names a service of another namespace: the callee's owner decides", "Write the grant in the namespace of the service."},
	{codePortsRequired, "A grant to a service with several ports does not say which", "Add \"ports\" with the names of those that are meant."},
	{codeHTTPOnTCP, "Methods or paths are given for a tcp port, which has none", "Remove them, or grant the other ports apart."},
	{codeMixed, "Methods or paths are given for ports of different protocols", "Write one grant for each protocol."},
	{codeMethod, "This is neither an HTTP method nor a gRPC method", "Write GET, POST, …, or pkg.Service/Method or pkg.Service/* for gRPC; leave methods out for all."},
	{codeMethodRefused, "CONNECT and TRACE are always refused, so they cannot be granted", "Remove it."},
	{codeMethodKind, "The method does not fit the port's protocol", "gRPC ports take pkg.Service/Method or pkg.Service/*, HTTP ports take GET, POST, …"},
	{codePathsOnGRPC, "Paths are given for a grpc port", "Write methods: [pkg.Service/Method] instead."},
	{codePath, "The path is not canonical, so it would never match", "Write an absolute path such as /orders/7, or /orders/** for any rest."},

	{codeReference, "This is not a reference", "Write name, or namespace/name."},
	{codeNoWorkload, "The workload does not exist", "Check the name; a workload of another namespace is namespace/name."},
	{codeNoNamespace, "The namespace has no workload", "Check the name."},
	{codeNoService, "The service does not exist", "Check the name; a workload is a service when it has \"serves\"."},
	{codeNoPort, "The service has no such port", "Name a port as its workload's \"serves\" does."},
	{codeNoGrant, "The grant does not exist", "Check the name; a grant of another namespace is namespace/name."},

	{codeRequest, "This is not a request", "Write \"GET orders /orders/7\", \"GRPC svc pkg.Service/Method\" or \"TCP db\"; a port is named as orders:http."},
	{codeByWithDeny, "\"by\" is given for a denial, which no grant makes", "Remove \"by\", or want allow."},
	{codeRequestProtocol, "The request does not fit the port's protocol", "tcp ports take TCP, grpc ports take GRPC or an HTTP request, the others an HTTP request."},
	{codeRequestPort, "The service has several ports and the request does not say which", "Name one of them: \"GET orders:http /orders/7\"."},
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
