package plugin

import "embed"

// Sources are the contract and what was made from it for Go: for projects of authors.
//
//go:embed adapter.proto pluginpb/adapter.pb.go plugingrpc/adapter_grpc.pb.go
var Sources embed.FS
