package client

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"net/netip"
	"os"
	"syscall"
	"time"

	"github.com/jointcloud/pcm"
)

// Bounds of connections.
const (
	maxConns       = 16
	maxHeaderBytes = 64 << 10
	dialTime       = 10 * time.Second
)

// metadata are addresses at which clouds tell machines their own credentials. No
// interface of a back end is there, whatever the site allows.
var metadata = prefixes("169.254.169.254/32", "169.254.169.253/32", "169.254.170.2/32", "169.254.170.23/32", "100.100.100.200/32", "168.63.129.16/32",
	"192.0.0.192/32", "fd00:ec2::254/128", "fd00:ec2::23/128", "fd20:ce::254/128")

// inner are networks that are not on the Internet, beside those that net/netip knows.
var inner = prefixes("0.0.0.0/8", "100.64.0.0/10", "192.0.0.0/24", "192.0.2.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
	"240.0.0.0/4", "64:ff9b:1::/48", "100::/64", "2001::/32", "2001:db8::/32", "fec0::/10")

// mapped are networks whose addresses hold an IPv4 address, at this byte.
var mapped = map[netip.Prefix]int{netip.MustParsePrefix("64:ff9b::/96"): 12, netip.MustParsePrefix("2002::/16"): 2, netip.MustParsePrefix("::/96"): 12}

func prefixes(list ...string) []netip.Prefix {
	var all []netip.Prefix
	for _, s := range list {
		all = append(all, netip.MustParsePrefix(s))
	}
	return all
}

func within(list []netip.Prefix, a netip.Addr) bool {
	for _, p := range list {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// checkAddress refuses addresses that a stranger must not send us to.
func checkAddress(a netip.Addr, private bool) error {
	a = a.Unmap().WithZone("")
	for p, at := range mapped {
		if b := a.As16(); a.Is6() && p.Contains(a) && a != netip.IPv6Loopback() && !a.IsUnspecified() {
			return checkAddress(netip.AddrFrom4([4]byte(b[at:at+4])), private)
		}
	}
	switch {
	case within(metadata, a):
		return pcm.Errorf(pcm.Refused, "the address %s is that of a cloud's metadata service", a)
	case a.IsUnspecified(), a.IsMulticast(), a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return pcm.Errorf(pcm.Refused, "the address %s is not that of a server", a)
	case !private && (a.IsLoopback() || a.IsPrivate() || a.IsLinkLocalUnicast() || within(inner, a)):
		return pcm.Errorf(pcm.Refused, "the address %s is not a public one: if the back end is in this site's own network, set allow_private", a)
	}
	return nil
}

// newTransport makes connections whose addresses are checked after they were
// resolved, so that a name that changes its address between two looks gains nothing.
func newTransport(timeout time.Duration, roots *x509.CertPool, private bool) *http.Transport {
	dialer := &net.Dialer{Timeout: dialTime, Control: func(network, address string, _ syscall.RawConn) error {
		ap, err := netip.ParseAddrPort(address)
		if err != nil {
			return pcm.Errorf(pcm.Refused, "%.64q is no address on a network", address)
		}
		return checkAddress(ap.Addr(), private)
	}}
	// HTTP/2 would save nothing at these rates; a hostile server has more ways in it.
	protocols := &http.Protocols{}
	protocols.SetHTTP1(true)
	return &http.Transport{
		DialContext:            dialer.DialContext,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots},
		TLSHandshakeTimeout:    dialTime,
		ResponseHeaderTimeout:  timeout,
		ExpectContinueTimeout:  time.Second,
		MaxResponseHeaderBytes: maxHeaderBytes,
		MaxConnsPerHost:        maxConns,
		MaxIdleConnsPerHost:    4,
		MaxIdleConns:           8,
		IdleConnTimeout:        time.Minute,
		DisableCompression:     true, // unpacked here, with a bound for both sizes
		Protocols:              protocols,
	}
}

// readCA reads a file of certificates that are trusted beside the system's.
func readCA(path string) (*x509.CertPool, error) {
	if path == "" {
		return nil, nil
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, pcm.Errorf(pcm.Invalid, "ca: can't read the file of certificates: %w", err)
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if !pool.AppendCertsFromPEM(data) {
		return nil, pcm.Errorf(pcm.Invalid, "ca: %s holds no certificate in PEM form", path)
	}
	return pool, nil
}
