//go:build zzpprof

package main

import (
	"net/http"
	_ "net/http/pprof"
	"os"
)

func init() {
	if a := os.Getenv("PCM_PPROF"); a != "" && len(os.Args) > 1 && os.Args[1] == "up" {
		go http.ListenAndServe(a, nil)
	}
}
