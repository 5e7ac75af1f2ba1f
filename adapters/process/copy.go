package process

import (
	"context"
	"io"

	"github.com/jointcloud/pcm/adapters"
)

// CopyOut implements adapters.Copier.
func (a *Adapter) CopyOut(ctx context.Context, k adapters.Key, path string, w io.Writer) error {
	return a.Pack(ctx, k, path, w)
}

// CopyIn implements adapters.Copier.
func (a *Adapter) CopyIn(ctx context.Context, k adapters.Key, folder string, r io.Reader) error {
	return a.Unpack(ctx, k, folder, r)
}
