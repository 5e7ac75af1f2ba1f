package api

import (
	"encoding/json"
	"reflect"
	"sync"

	"github.com/danielgtaylor/huma/v2"

	"github.com/jointcloud/pcm"
)

// JobSchema is the JSON Schema (draft 2020-12) of a job's spec, indented.
var JobSchema = sync.OnceValue(func() json.RawMessage {
	reg := huma.NewMapRegistry("#/$defs/", schemaName)
	root := reg.Schema(reflect.TypeFor[pcm.Spec](), false, "")
	raw, err := json.Marshal(root)
	if err != nil {
		panic(err) // a schema is plain data
	}
	doc := map[string]any{}
	if err := json.Unmarshal(raw, &doc); err != nil {
		panic(err)
	}
	doc["$schema"] = "https://json-schema.org/draft/2020-12/schema"
	doc["title"] = "PCM job"
	if defs := reg.Map(); len(defs) > 0 {
		doc["$defs"] = defs
	}
	raw, err = json.MarshalIndent(doc, "", "  ")
	if err != nil {
		panic(err)
	}
	return raw
})
