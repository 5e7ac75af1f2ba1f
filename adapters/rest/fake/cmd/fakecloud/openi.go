package main

import "github.com/jointcloud/pcm/adapters/rest/fake/openi"

func init() {
	clouds["openi"] = cloud{about: "an AI platform in the style of OpenI's Octopus", start: startOpenI}
}

func startOpenI(p place) (*started, error) {
	o := openi.Options{Dir: p.dir, Username: "pcm", Password: "secret", GPU: 1}
	c := openi.New(o)
	return &started{
		api: c, close: func() error { c.Close(); return nil },
		access: map[string]string{"username": o.Username, "password": o.Password, "image": openi.DefaultImage},
	}, nil
}
