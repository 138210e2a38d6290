package controlplane

import "net/netip"

// isReserved says whether an address leads back inside: to this host or its link,
// to the metadata service of a cloud, or to no one host at all. An IPv6 address
// that stands for an IPv4 address is judged as that, too: a network may translate
// it (RFC 6052, RFC 3056, RFC 4380).
//
// CVE-2021-32783, CVE-2022-29153 and CVE-2026-41413 are control planes, or the
// proxies that they configure, that were sent to such addresses by a name.
func isReserved(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	if !a.IsValid() || a.IsUnspecified() || a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsMulticast() {
		return true
	}
	if a.Is4() {
		return isReserved4(a.As4())
	}
	b := a.As16()
	if b[0] == 0xfe && b[1]&0xc0 == 0xc0 { // fec0::/10, site-local of old
		return true
	}
	if a == netip.AddrFrom16([16]byte{0xfd, 0x00, 0x0e, 0xc2, 14: 0x02, 15: 0x54}) { // fd00:ec2::254, metadata (AWS)
		return true
	}
	switch {
	case b[0] == 0 && b[1] == 0 && [10]byte(b[2:12]) == [10]byte{}, // ::/96, IPv4-compatible
		[12]byte(b[:12]) == [12]byte{0, 0x64, 0xff, 0x9b}: // 64:ff9b::/96, NAT64
		return isReserved(netip.AddrFrom4([4]byte(b[12:])))
	case b[0] == 0 && b[1] == 0x64 && b[2] == 0xff && b[3] == 0x9b: // 64:ff9b:1::/48: whatever it stands for, it is local
		return true
	case b[0] == 0x20 && b[1] == 0x02: // 6to4
		return isReserved(netip.AddrFrom4([4]byte(b[2:6])))
	case b[0] == 0x20 && b[1] == 0x01 && b[2] == 0 && b[3] == 0: // Teredo: the client's address, inverted
		return isReserved(netip.AddrFrom4([4]byte{^b[12], ^b[13], ^b[14], ^b[15]}))
	}
	return false
}

func isReserved4(b [4]byte) bool {
	switch b {
	case [4]byte{100, 100, 100, 200}, // metadata (Alibaba Cloud)
		[4]byte{168, 63, 129, 16}: // the host's own agent (Azure)
		return true
	}
	return b[0] == 0 || // 0.0.0.0/8, this network (RFC 1122, section 3.2.1.3)
		b[0] >= 240 || // reserved, and broadcast
		b[0] == 192 && b[1] == 0 && b[2] == 0 // 192.0.0.0/24, protocol assignments; metadata (Oracle Cloud)
}
