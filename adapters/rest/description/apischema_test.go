package description

import (
	"fmt"
	"strings"
	"testing"
)

// cloudAPI is in the style of a cloud's documents: parts, variants, enums, references to itself.
const cloudAPI = `openapi: 3.0.3
info: {title: runs, version: "1"}
servers: [{url: "{scheme}://nowhere"}, {url: "https://runs.example/v2"}]
security: [{oauth: [runs]}, {token: [], project: []}]
paths:
  /projects/{project}/runs:
    get:
      operationId: listRuns
      parameters:
        - {name: project, in: path, required: true, schema: {type: string}}
        - {name: state, in: query, schema: {type: array, items: {$ref: "#/components/schemas/State"}}}
        - {name: ids, in: query, explode: false, schema: {type: array, items: {type: integer}}}
      responses:
        200: {content: {application/json: {schema: {type: object, properties: {runs: {type: array, items: {$ref: "#/components/schemas/Run"}}, next: {type: string, nullable: true}}}}}}
    post:
      operationId: makeRun
      requestBody: {required: true, content: {application/json: {schema: {allOf: [{$ref: "#/components/schemas/Spec"}, {required: [name], properties: {name: {type: string}}}]}}}}
      responses: {"202": {content: {application/json: {schema: {allOf: [{$ref: "#/components/schemas/Run"}]}}}}}
  /runs/{id}/log:
    get: {operationId: getLog, responses: {"200": {content: {text/plain: {}}}}}
    put: {operationId: putFiles, requestBody: {content: {application/x-tar: {}}}, responses: {"204": {}}}
components:
  securitySchemes:
    oauth: {type: oauth2}
    token: {type: apiKey, in: header, name: X-Token}
    project: {type: apiKey, in: query, name: project}
  schemas:
    State: {type: string, enum: [QUEUED, RUNNING, DONE]}
    Spec: {type: object, properties: {argv: {type: array, items: {type: string}}, env: {type: object, additionalProperties: {type: string}}, source: {oneOf: [{type: string}, {$ref: "#/components/schemas/Run"}]}}}
    Run: {type: object, required: [id], properties: {id: {type: integer}, state: {$ref: "#/components/schemas/State"}, parent: {$ref: "#/components/schemas/Run"}, code: {type: integer, nullable: true}}}
`

// show writes a schema as one would say it.
func (s Schema) show(types []Type) string {
	out := s.Kind
	switch s.Kind {
	case "string":
		if s.Enum != nil {
			out = strings.Join(s.Enum, "/")
		}
	case "array", "map":
		out += " of " + s.Items.show(types)
	case "object":
		out = types[s.Type].Name
	case "union":
		var parts []string
		for _, o := range s.Of {
			parts = append(parts, o.show(types))
		}
		out = strings.Join(parts, " or ")
	}
	if s.Null {
		out += " or null"
	}
	return out
}

func TestAPISchemas(t *testing.T) {
	api, err := ParseOpenAPI([]byte(cloudAPI))
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, op := range api.Operations {
		fmt.Fprintf(&b, "%s:", op.ID)
		for _, p := range op.Params {
			fmt.Fprintf(&b, " %s %s %s%s;", p.In, p.Name, p.Schema.show(api.Types), strings.TrimSuffix(" by "+p.Join, " by &"))
		}
		if op.Body != nil {
			b.WriteString(" takes " + op.Body.Schema.show(api.Types))
		}
		if op.Answer != nil {
			b.WriteString(" gives " + op.Answer.show(api.Types))
		}
		fmt.Fprintf(&b, " %s %v\n", op.Upload, op.Raw)
	}
	for _, typ := range api.Types {
		fmt.Fprintf(&b, "%s %v:", typ.Name, typ.Answered)
		for _, f := range typ.Fields {
			fmt.Fprintf(&b, " %s %s %v;", f.Name, f.Schema.show(api.Types), f.Required)
		}
		b.WriteString("\n")
	}
	fmt.Fprintln(&b, api.Logins, api.Unknown, api.Server)
	const want = `listRuns: path project string; query state array of QUEUED/RUNNING/DONE; query ids array of integer by ,; gives listRuns answer  false
makeRun: takes makeRun body gives Run  false
getLog:  true
putFiles: application/x-tar false
listRuns answer true: next string or null false; runs array of Run false;
Run true: code integer or null false; id integer true; parent Run false; state QUEUED/RUNNING/DONE false;
makeRun body false: argv array of string false; env map of string false; name string true; source string or Run false;
[{project query project} {token header X-Token}] [] https://runs.example/v2
`
	if b.String() != want {
		t.Errorf("read as\n%s, want\n%s", b.String(), want)
	}
}

// Reading comes to an end where a document refers to itself, or stands for more than fits.
func TestAPISchemasEnd(t *testing.T) {
	self := strings.Repeat(`{$ref: "#/components/schemas/A"}, `, 200)
	for name, schema := range map[string]string{
		"a reference to itself": `{$ref: "#/components/schemas/A"}`,
		"parts":                 `{allOf: [` + self + `]}`,
		"variants":              `{oneOf: [` + strings.Repeat(`{$ref: "#/components/schemas/A"}, `, 10) + `]}`,
		"fields and parts":      `{properties: {a: {$ref: "#/components/schemas/A"}}, allOf: [` + self + `], anyOf: [` + self + `]}`,
		"lists":                 `{type: array, items: {$ref: "#/components/schemas/A"}}`,
		"no schema":             `[1, 2]`,
		"a type that is none":   `{type: [[1], {a: 1}], enum: {a: 1}, required: 7, oneOf: 3}`,
	} {
		api, err := ParseOpenAPI([]byte(`{openapi: 3.1.0, paths: {/a: {post: {operationId: a, requestBody: {content: {application/json: {schema: {$ref: "#/components/schemas/A"}}}}, responses: {"200": {content: {application/json: {schema: {$ref: "#/components/schemas/A"}}}}}}}}, components: {schemas: {A: ` + schema + `}}}`))
		if err != nil || len(api.Operations) != 1 || len(api.Types) > maxTypes {
			t.Errorf("%s: %v", name, err)
		}
	}
}
