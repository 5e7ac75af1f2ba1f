package main

import (
	"path/filepath"

	"github.com/jointcloud/pcm/adapters/rest/fake/modelarts"
	"github.com/jointcloud/pcm/adapters/rest/fake/objects"
)

func init() {
	clouds["modelarts"] = cloud{about: "Huawei Cloud ModelArts: training jobs, with an object store", data: true, start: startModelArts}
}

func startModelArts(p place) (*started, error) {
	store, err := objects.Open(objects.Options{Dir: filepath.Join(p.dir, "objects")})
	if err != nil {
		return nil, err
	}
	const bucket = "pcm"
	if err := store.CreateBucket(bucket); err != nil {
		return nil, err
	}
	c, err := modelarts.New(modelarts.Options{Dir: filepath.Join(p.dir, "modelarts"), Store: store, StoreURL: p.storeURL})
	if err != nil {
		return nil, err
	}
	access, secret := c.Keys()
	return &started{api: c, store: store, close: c.Close, access: map[string]string{
		"project": c.Project(), "bucket": bucket, "access_key": access, "secret_key": secret,
	}}, nil
}
