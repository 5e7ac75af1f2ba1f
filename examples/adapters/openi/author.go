package main

import (
	"context"
	"net/http"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	// pcm:begin imports
	// pcm:end imports
)

// sign adds what shows who asks, for log-ins that need a signer of the provider's own.
func sign(ctx context.Context, c *client, r *http.Request) error {
	// pcm:begin sign
	return status.Errorf(codes.Unimplemented, "a log-in of kind %s is signed by the provider's own SDK: call it here", c.d.Login.Kind)
	// pcm:end sign
}

// uploadOther brings inputs to stores other than pre-signed URLs with archives. It
// gives what templates see as data.
func uploadOther(ctx context.Context, b *described, a *Attempt) (map[string]any, error) {
	// pcm:begin upload
	return nil, status.Error(codes.Unimplemented, "the data store is reached by its own SDK: call it here")
	// pcm:end upload
}

// downloadOther brings outputs from there into a.Request.Work.
func downloadOther(ctx context.Context, b *described, a *Attempt) error {
	// pcm:begin download
	return status.Error(codes.Unimplemented, "the data store is reached by its own SDK: call it here")
	// pcm:end download
}
