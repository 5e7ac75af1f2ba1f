// Command server is a service for tests: it tells who it is, and can be made to
// fail its health checks or to end.
package main

import (
	"crypto/rand"
	"fmt"
	"net/http"
	"os"
	"sync/atomic"
)

func main() {
	id := rand.Text()
	var ill atomic.Bool
	http.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, id) })
	http.HandleFunc("/ill", func(w http.ResponseWriter, _ *http.Request) { ill.Store(true) })
	http.HandleFunc("/end", func(http.ResponseWriter, *http.Request) { os.Exit(0) })
	http.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) {
		if ill.Load() {
			w.WriteHeader(http.StatusInternalServerError)
		}
	})
	if err := http.ListenAndServe(":"+os.Getenv("PCM_PORT"), nil); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
