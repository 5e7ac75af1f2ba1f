package main

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"testing"
	"time"
)

// Each cloud starts, says where it is, answers there, and leaves nothing behind.
func TestClouds(t *testing.T) {
	for name := range clouds {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			r, w := io.Pipe()
			done := make(chan error, 1)
			go func() {
				err := run(ctx, []string{name}, w)
				w.CloseWithError(err)
				done <- err
			}()
			line, err := bufio.NewReader(r).ReadBytes('\n')
			if err != nil {
				t.Fatal(err)
			}
			var said map[string]string
			if err := json.Unmarshal(line, &said); err != nil || said["cloud"] != name {
				t.Fatalf("%s: %v", line, err)
			}
			resp, err := http.Get(said["url"] + "/nothing")
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode < 400 || resp.StatusCode >= 500 {
				t.Errorf("status %d", resp.StatusCode)
			}
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
			if _, err := os.Stat(said["dir"]); !os.IsNotExist(err) {
				t.Errorf("its folder stays: %v", err)
			}
		})
	}
	for _, args := range [][]string{nil, {"none"}, {"modelarts", "more"}} {
		if err := run(t.Context(), args, io.Discard); err == nil {
			t.Errorf("%q is taken", args)
		}
	}
}
