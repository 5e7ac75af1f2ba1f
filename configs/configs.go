// Package configs holds what this folder publishes, for the program to hand on.
package configs

import "embed"

// JobSchema is the JSON Schema (draft 2020-12) of a job's spec.
//
//go:embed job.schema.json
var JobSchema []byte

// Adapters holds the descriptions of back ends that are shipped, adapters/NAME.yaml.
//
//go:embed adapters/*.yaml
var Adapters embed.FS

// AdapterSchema is the JSON Schema (draft 2020-12) of the description of a back end
// with a REST API.
//
//go:embed adapter.schema.json
var AdapterSchema []byte
