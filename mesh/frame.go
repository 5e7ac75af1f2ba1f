package mesh

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"

	"github.com/jointcloud/pcm"
)

// A frame is a length (unsigned varint) and that many bytes.

// readFrame reads one frame of at most limit bytes. Memory grows with the bytes
// that arrive, not with the length that a peer claims. An oversized claim is
// an *pcm.Error with code TooLarge before any of it is read.
func readFrame(r io.Reader, limit int) ([]byte, error) {
	n, err := binary.ReadUvarint(byteReader{r})
	if err != nil {
		return nil, err
	}
	if n > uint64(limit) {
		return nil, pcm.Errorf(pcm.TooLarge, "message of %d bytes is over this protocol's bound of %d", n, limit)
	}
	const step = 64 << 10
	if n <= step {
		b := make([]byte, n)
		_, err := io.ReadFull(r, b)
		return b, unexpected(err)
	}
	var buf bytes.Buffer
	buf.Grow(step)
	if _, err := io.CopyN(&buf, r, int64(n)); err != nil {
		return nil, unexpected(err)
	}
	return buf.Bytes(), nil
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func appendFrame(b, payload []byte) []byte {
	return append(binary.AppendUvarint(b, uint64(len(payload))), payload...)
}

func writeFrame(w io.Writer, payload []byte) error {
	_, err := w.Write(appendFrame(make([]byte, 0, len(payload)+binary.MaxVarintLen64), payload))
	return err
}

// byteReader reads single bytes without buffering ahead: what follows belongs to the caller.
type byteReader struct{ r io.Reader }

func (b byteReader) ReadByte() (byte, error) {
	var one [1]byte
	_, err := io.ReadFull(b.r, one[:])
	return one[0], err
}
