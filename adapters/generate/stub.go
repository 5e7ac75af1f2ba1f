package generate

import (
	"encoding/base64"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"

	"github.com/jointcloud/pcm/adapters/plugin/pluginpb"
)

// Descriptor is the contract as protoc has read it, in lines of base64: for
// languages that make their messages of that.
func (p *Project) Descriptor() (string, error) {
	file := (&pluginpb.Pool{}).ProtoReflect().Descriptor().ParentFile()
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(protodesc.ToFileDescriptorProto(file))
	if err != nil {
		return "", err
	}
	var b strings.Builder
	for text := base64.StdEncoding.EncodeToString(raw); text != ""; {
		n := min(len(text), 100)
		b.WriteString(text[:n] + "\n")
		text = text[n:]
	}
	return b.String(), nil
}

// Optional are the sections that the description has of those that it may leave out.
func (p *Project) Optional() (names []string) {
	for _, name := range []string{"let", "logs", "stop", "kill", "suspend", "resume", "delete", "data"} {
		if p.Has(name) {
			names = append(names, name)
		}
	}
	return names
}
