package main

import (
	"path/filepath"

	"github.com/jointcloud/pcm/adapters/rest/fake/objects"
	"github.com/jointcloud/pcm/adapters/rest/fake/openstack"
)

func init() {
	clouds["openstack"] = cloud{about: "Keystone and Nova, with an object store that speaks S3", data: true, start: startOpenStack}
}

func startOpenStack(p place) (*started, error) {
	store, err := objects.Open(objects.Options{Dir: filepath.Join(p.dir, "objects")})
	if err != nil {
		return nil, err
	}
	const access, secret, bucket = "pcm", "hush", "pcm"
	store.Allow(access, secret)
	if err := store.CreateBucket(bucket); err != nil {
		return nil, err
	}
	o := openstack.Options{Dir: filepath.Join(p.dir, "servers"), User: "pcm", Password: "secret", Domain: "Default", Project: "demo", Region: "RegionOne", GPUs: 1}
	c := openstack.New(o)
	return &started{
		api: c, store: store, close: func() error { c.Close(); return nil },
		access: map[string]string{
			"identity": p.url + "/identity/v3", "user": o.User, "password": o.Password, "domain": o.Domain, "project": o.Project, "region": o.Region,
			"image": openstack.DefaultImage, "access_key": access, "secret_key": secret, "bucket": bucket,
		},
	}, nil
}
