#!/bin/sh
# Makes pluginpb and plugingrpc from adapter.proto. It needs protoc, for example that of
# the Python package grpcio-tools (PROTOC="python3 -m grpc_tools.protoc"), and network for Go's generators.
set -eu
cd "$(dirname "$0")"
bin=$(mktemp -d) && trap 'rm -rf "$bin"' EXIT
GOBIN=$bin go install google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.11
GOBIN=$bin go install google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.6.2
PATH=$bin:$PATH ${PROTOC:-protoc} -I . --go_out=pluginpb --go_opt=paths=source_relative \
	--go-grpc_out=plugingrpc --go-grpc_opt=paths=source_relative adapter.proto
# The server's half goes into a package of its own, so that the messages don't bring all of gRPC with them.
sed -i -e 's/^package pluginpb$/package plugingrpc/' \
	-e 's#^import (#import (\n\tpb "github.com/jointcloud/pcm/adapters/plugin/pluginpb"#' \
	-e '/^[[:space:]]*\/\//!s/\b\([A-Z][A-Za-z]*\(Request\|Response\)\)\b/pb.\1/g' plugingrpc/adapter_grpc.pb.go
gofmt -w pluginpb plugingrpc
sha256sum adapter.proto | cut -d' ' -f1 > adapter.proto.sha256
