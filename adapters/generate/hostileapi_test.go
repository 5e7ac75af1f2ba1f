package generate

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// evils are texts that would end what they stand in, in one language or another.
var evils = []string{
	"\n}\n\nfunc init() { panic(1) }\n\n//", "*/ process.exit(7); /*", `""" + exit(7) + """`, "'''; raise SystemExit(7)", "${process.exit(7)}", "`+process.exit(7)+`",
	"\\", `\"`, "\u2028process.exit(7)\u2029", "\r\nraise SystemExit(7)\r\n", "\x00\x1b[31m\u202e\u2066", "\npcm:end login\npcm:begin login\n", "pcm:begin evil",
	"{}", "{a}{b", "%s%d%n", "__proto__", "été 中文 \U0001f600", strings.Repeat("x", 20_000), "@evil.example/", "", " ", "1st", "$ref", "<!-- -->", "]]>",
}

// evilWords are those of the languages, and of what is generated.
var evilWords = strings.Fields(`
	import class def return lambda None True False self cls async await in is not from global pass raise with yield
	func go defer select range type var chan map interface struct package init main
	function delete new this super typeof void let const enum export default static constructor prototype
	api API call Calls sign login server base given body to most t list dict str int Any Literal Required TypedDict Promise Array Buffer
	getJob get_job get-job GetJob get.job Get_Job getJob2 getjob`)

// hostileAPI is an OpenAPI document with all of that wherever a text may be.
func hostileAPI(t *testing.T) []byte {
	t.Helper()
	type object = map[string]any
	paths, schemas := object{}, object{}
	content := func(kind string, schema any) object { return object{"content": object{kind: object{"schema": schema}}} }
	for n, evil := range append(slices.Clone(evils), evilWords...) {
		ref := object{"$ref": "#/components/schemas/" + strings.NewReplacer("~", "~0", "/", "~1").Replace(evil)}
		schemas[evil] = object{"type": "object", "required": []any{evil}, "properties": object{
			evil: object{"type": "string", "enum": []any{evil, "plain"}}, "state": object{"enum": []any{evil, "done"}}, "own": object{"type": "array", "items": ref},
			"one": object{"oneOf": []any{ref, object{"type": "object", "properties": object{evil: ref}}}},
		}}
		var params []any
		for _, in := range []string{"query", "header", "path", "cookie", evil} {
			params = append(params, object{"name": evil, "in": in, "schema": object{"type": []any{"array", "null", evil}, "items": object{"enum": []any{evil}}}})
		}
		params = append(params, object{"name": evil + "-", "in": "query"}, object{"name": "-" + evil, "in": "query", "required": true})
		post := object{"summary": evil, "parameters": params, "requestBody": content("application/json", ref), "responses": object{"200": content("application/json", ref)}}
		if evil != "" {
			post["operationId"] = evil
		}
		put := object{"summary": evil, "operationId": evil + " put", "requestBody": content(evil+"/x", nil), "responses": object{"200": content(evil, nil)}}
		paths[fmt.Sprintf("/%d/{%s}/%s", n, evil, evil)] = object{"post": post, "put": put, "get": object{"summary": evil}}
	}
	text, err := json.Marshal(object{
		"openapi": "3.1.0", "servers": []any{object{"url": "https://" + evils[0]}}, "paths": paths, "security": []any{object{evils[0]: []any{}}, object{evils[1]: []any{}}},
		"components": object{"schemas": schemas, "securitySchemes": object{evils[0]: object{"type": "oauth2"}, evils[1]: object{"type": "apiKey", "in": "query", "name": evils[2]}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return text
}

var hidden = regexp.MustCompile("[\u2028\u2029\u202e\u2066\x00\x1b]")

// What a document says becomes text and comments, never code: nothing of it stands
// outside of quotes and comments. That the tools of the languages take it, too, is seen
// below and by TestToolChainsOpenAPI.
func TestNoCodeFromDocuments(t *testing.T) {
	for _, lang := range Languages() {
		dir := filepath.Join(t.TempDir(), "x")
		r := generated(t, Options{Name: "jobs", Language: lang, Dir: dir, From: hostileAPI(t), FromFile: "api" + evils[0] + evils[1] + evils[2] + ".json"})
		for _, name := range r.Written {
			text := read(t, filepath.Join(dir, filepath.FromSlash(name)))
			if m := hidden.FindString(text); m != "" && name != manifestName {
				t.Errorf("%s, %s: it has a character %q", lang, name, m)
			}
			rs, _, err := regions([]byte(text))
			if slices.ContainsFunc(rs, func(r Region) bool { return r.Name == "evil" }) {
				err = errors.New("it has a region called evil")
			}
			if err != nil {
				t.Errorf("%s, %s: %v", lang, name, err)
			}
			if !slices.Contains(source, filepath.Ext(name)) {
				continue
			}
			for i, line := range strings.Split(text, "\n") {
				bare := outside(line, map[string]string{"go": "//", "python": "#", "typescript": "//"}[lang])
				for _, code := range []string{"exit(7)", "SystemExit(7)", "func init() { panic", "panic(1)"} {
					if strings.Contains(bare, code) {
						t.Errorf("%s, %s:%d has code of the document: %.200s", lang, name, i+1, line)
					}
				}
			}
		}
		if lang == "go" {
			cmd := exec.Command("go", "vet", ".")
			cmd.Dir = dir
			cmd.Env = append(os.Environ(), "GOFLAGS=-buildvcs=false", "GOWORK=off")
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		}
	}
}

// outside is what of a line stands neither in double quotes nor behind a comment's mark.
func outside(line, comment string) string {
	var b strings.Builder
	quoted := false
	for i := 0; i < len(line); i++ {
		switch {
		case quoted && line[i] == '\\':
			i++
		case line[i] == '"':
			quoted = !quoted
		case !quoted && strings.HasPrefix(line[i:], comment):
			return b.String()
		case !quoted:
			b.WriteByte(line[i])
		}
	}
	return b.String()
}
