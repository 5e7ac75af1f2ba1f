package pcm

import (
	"math"
	"strconv"
	"strings"
)

// BitRate is a speed of a network in million bits a second.
type BitRate int64

const maxBitRate BitRate = 1e9

// ParseBitRate reads "100 Gbit/s", "25Gbps" or "500 Mbit/s".
func ParseBitRate(s string) (BitRate, error) {
	t := strings.TrimSpace(s)
	for _, u := range []struct {
		suffix string
		factor float64
	}{{"Mbit/s", 1}, {"Gbit/s", 1e3}, {"Tbit/s", 1e6}, {"Mbps", 1}, {"Gbps", 1e3}, {"Tbps", 1e6}} {
		n, ok := strings.CutSuffix(t, u.suffix)
		if !ok {
			continue
		}
		f, err := strconv.ParseFloat(strings.TrimSpace(n), 64)
		if err == nil && f > 0 && f*u.factor <= float64(maxBitRate) {
			return BitRate(math.Ceil(f * u.factor)), nil
		}
	}
	return 0, Errorf(Invalid, "%.40q is not a speed of a network; write it like 100 Gbit/s or 500 Mbit/s", s)
}

func (b BitRate) String() string {
	switch {
	case b >= 1e6 && b%1e4 == 0:
		return Micro(b).String() + "Tbit/s"
	case b >= 1e3:
		return (Micro(b) * 1000).String() + "Gbit/s"
	}
	return strconv.FormatInt(int64(b), 10) + "Mbit/s"
}

// Network is what a pool says of the network among its machines.
type Network struct {
	Bandwidth BitRate `json:"bandwidth_mbits,omitempty" cbor:"1,keyasint,omitempty"` // of one machine; 0: not stated
	Fabric    string  `json:"fabric,omitempty" cbor:"2,keyasint,omitempty"`          // e.g. "infiniband", "roce", "ethernet"
}

// Validate checks the bounds.
func (n Network) Validate() error {
	if n.Bandwidth < 0 || n.Bandwidth > maxBitRate {
		return Errorf(Invalid, "network: bandwidth %s is out of range", n.Bandwidth)
	}
	if n.Fabric != "" && !ValidName(n.Fabric) {
		return Errorf(Invalid, "network: fabric %.40q is not a name", n.Fabric)
	}
	return nil
}

func (n Network) String() string {
	var b string
	if n.Bandwidth > 0 {
		b = n.Bandwidth.String()
	}
	return strings.TrimSpace(b + " " + n.Fabric)
}
