#!/bin/bash
# Builds the Kubernetes binaries that the tests of adapters/kubernetes run, from the
# Go module proxy, into a cache by version. What is there is not built again.
set -euo pipefail
version=1.36.3 etcd=v3.6.8 kwok=v0.8.0
cache=${XDG_CACHE_HOME:-$HOME/.cache}/pcm/kubernetes-$version
export CGO_ENABLED=0 GOFLAGS=-mod=mod
mkdir -p "$cache"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

programs=(kube-apiserver kube-controller-manager kube-scheduler kubelet)
missing=()
for p in "${programs[@]}"; do [ -x "$cache/$p" ] || missing+=("$p"); done
if [ ${#missing[@]} -gt 0 ]; then
  mkdir kubernetes && cd kubernetes
  mod=$(go mod download -json k8s.io/kubernetes@v$version | sed -n 's/.*"GoMod": "\(.*\)",/\1/p')
  {
    echo "module build"
    grep -m1 '^go ' "$mod"
    grep -m1 '^godebug ' "$mod" || true
    echo "require k8s.io/kubernetes v$version"
    # The parts that are published on their own are v0.0.0 in its go.mod.
    sed -n 's/^\t\(k8s\.io\/[a-z-]*\) v0\.0\.0\( .*\)\?$/\1/p' "$mod" | sort -u | while read -r m; do echo "replace $m => $m v0.${version#1.}"; done
  } > go.mod
  { echo "package build"; echo; for p in "${programs[@]}"; do echo "import _ \"k8s.io/kubernetes/cmd/$p\""; done; } > build.go
  sed -i '1i //go:build tools\n' build.go
  go mod tidy
  for p in "${missing[@]}"; do
    go build -trimpath -ldflags "-s -w -X k8s.io/component-base/version.gitVersion=v$version" -o "$cache/$p.new" "k8s.io/kubernetes/cmd/$p"
    mv "$cache/$p.new" "$cache/$p"
  done
  cd ..
fi
if [ ! -x "$cache/etcd" ]; then
  mkdir etcd && cd etcd
  printf 'module build\n\ngo 1.24\n' > go.mod
  printf 'package main\n\nimport (\n\t"os"\n\n\t"go.etcd.io/etcd/server/v3/etcdmain"\n)\n\nfunc main() { etcdmain.Main(os.Args) }\n' > main.go
  go get go.etcd.io/etcd/server/v3@$etcd
  go mod tidy
  go build -trimpath -ldflags "-s -w" -o "$cache/etcd.new" .
  mv "$cache/etcd.new" "$cache/etcd"
  cd ..
fi
if [ ! -x "$cache/kwok" ]; then
  GOFLAGS= GOBIN=$work/bin go install -trimpath -ldflags "-s -w" sigs.k8s.io/kwok/cmd/kwok@$kwok
  mv "$work/bin/kwok" "$cache/kwok"
fi
if [ ! -f "$cache/kwok.yaml" ]; then
  # What its nodes and pods do: all of it at once; pods run until they are deleted.
  stages=$(GOFLAGS= go mod download -json sigs.k8s.io/kwok@$kwok | sed -n 's/.*"Dir": "\(.*\)",/\1/p')/kustomize/stage
  for f in node/fast/node-initialize node/heartbeat-with-lease/node-heartbeat-with-lease pod/fast/pod-ready pod/fast/pod-delete; do
    cat "$stages/$f.yaml"
    echo "---"
  done > "$cache/kwok.yaml.new"
  mv "$cache/kwok.yaml.new" "$cache/kwok.yaml"
fi
ls "$cache"
