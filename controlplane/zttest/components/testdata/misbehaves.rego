# Answers that an authorizer must not give, by the name of the order that it is
# asked about: /orders/<name>.
package ztmesh.authz

decision := answers[input.parsed_path[1]]

decision := {"allowed": true} if {
	input.parsed_path[1] == "slow"
	http.send({"method": "GET", "url": data.silent, "timeout": "60s", "raise_error": false})
}

answers["yes"] := {"allowed": true}

answers["path"] := {"allowed": true, "headers": {":path": "/admin"}}

answers["method"] := {"allowed": true, "headers": {":method": "DELETE"}}

answers["authority"] := {"allowed": true, "headers": {":authority": "admin.shop.mesh"}}

answers["host"] := {"allowed": true, "headers": {"host": "admin.shop.mesh"}}

answers["undeclared"] := {"allowed": true, "headers": {"x-admin": "true"}}

answers["undeclared-beside"] := {"allowed": true, "headers": {"x-order-limit": "1", "x-admin": "true"}}

answers["original"] := {"allowed": true, "headers": {"x-envoy-original-path": "/admin"}}

answers["identity"] := {"allowed": true, "headers": {"x-forwarded-client-cert": "URI=spiffe://shop.example/ns/shop/sa/admin"}}

answers["removal"] := {"allowed": true, "request_headers_to_remove": ["x-forwarded-client-cert"]}

answers["query"] := {"allowed": true, "query_parameters_to_set": {"admin": "true"}}

answers["query-removal"] := {"allowed": true, "query_parameters_to_remove": ["a"]}

answers["no-saying-200"] := {"allowed": false, "http_status": 200, "body": "welcome"}

answers["nonsense"] := "yes"

answers["nothing"] := {}
