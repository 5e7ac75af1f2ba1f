package description

import (
	"fmt"
	"strings"
	"testing"
)

// Each change of the small description has one problem more, with its line.
func TestLint(t *testing.T) {
	add := func(text string) [2]string { return [2]string{"about: a test\n", "about: a test\n" + text} }
	swap := func(from, to string) [2]string { return [2]string{from, to} }
	for _, c := range []struct {
		change [2]string
		want   string // "warning: " before what only warns
	}{
		{swap("login: {kind: none}", "login: {kind: nothing}"), `line 8: login.kind: "nothing" is none of api-key, aws, basic`},
		{swap("login: {kind: none}", "login: {kind: bearer}"), "line 8: login: a log-in of kind bearer needs token or request"},
		{swap("login: {kind: none}", "login: {kind: none, in: query}"), "line 8: login.in: it means nothing for a log-in of kind none"},
		{swap("login: {kind: none}", "login: {kind: bearer, token: tok}"), `line 8: login.token: no secret is called "tok"`},
		{swap("login: {kind: none}", "login: {kind: api-key, as: X-Key, in: body, key: k}\nsecrets: {k: {about: key}}"), `line 8: login.in: "body" is neither header nor query`},
		{swap("login: {kind: none}", "login: {kind: bearer, token: gVq83hfKQ02nsmW9aPl3xkT7}"), "line 8: login.token: here stands the secret itself"},
		{add("secrets: {k: {about: key}}\n"), "warning: line 4: secrets: there is no log-in"},
		{swap("path: /flavors", "path: /flavors, server: other"), `line 11: pools.list.request.server: no server is called "other"`},
		{swap("path: /flavors", `path: /flavors, headers: {Authorization: "Bearer abcdefgh1234567890"}`), "line 11: pools.list.request.headers.Authorization: here stands something like a key"},
		{swap("path: /flavors", `path: "https://example.com/x"`), "line 11: pools.list.request.path: it is not a path below the server's URL"},
		{swap("path: /flavors", "method: FETCH, path: /flavors"), `line 11: pools.list.request.method: "FETCH" is none of`},
		{swap("path: /flavors", "path: /flavors, answer: xml"), `"xml" is neither json nor text`},
		{swap("{path: /flavors}", "{query: {a: b}}"), "line 11: pools.list.request: path is missing"},
		{swap("path: /flavors", `path: "/flavors/${settings.zone}"`), `line 11: pools.list.request.path: no setting is called "zone"`},
		{swap("param: marker, marker: item.id", "param: marker"), "line 13: pools.list.paging: paging of kind marker needs marker"},
		{swap("kind: marker, param: marker, marker: item.id", "kind: scroll"), `line 13: pools.list.paging.kind: "scroll" is none of link, marker, offset, page, url`},
		{swap("kind: marker, param: marker, marker: item.id", "kind: link, param: p"), "it means nothing for paging of kind link"},
		{swap(`, memory: "${item.mib} MiB"`, ""), "line 14: pools.pool: memory is missing"},
		{swap("size: 3", `size: "${task.let.size}"`), `line 19: create.request.body: no value below let is called "size"`},
		{add("let: [{name: one, value: 1}]\n"), "warning: line 4: let[0]: nothing uses one"},
		{add("let: [{name: one, value: \"${task.let.two}\"}, {name: two, value: \"${task.let.one}\"}]\n"), `line 4: let[0].value: no value below let is called "two"`},
		{add("features: [exec]\n"), `line 4: features[0]: "exec" is nothing that a description can give`},
		{add("features: [suspend]\n"), "line 4: features[0]: there is no call suspend"},
		{add("lacks: {exek: no}\n"), `line 4: lacks: "exek" is no capability that adapters are tested for; did you mean "exec"?`},
		{add("lacks: {exec: \"\"}\n"), `line 4: lacks: "exec" has no reason`},
		{add("limits: {rate: -1}\n"), "line 4: limits: rate and burst"},
		{add("data: {store: s3}\n"), "line 4: data: a store s3 needs"},
		{swap("{state: ended, outcome: ok}", "{state: ended}"), "line 25: states.done: a state that is ended needs an outcome"},
		{swap("{state: ended, outcome: ok}", "{state: ended, outcome: failed}"), "line 25: states: no word has the outcome ok"},
		{swap("{state: ended, outcome: ok}", "{state: running}"), "line 25: states: no word means that a job is ended"},
		{swap("{state: ended, outcome: ok}", "{state: halted}"), `line 25: states.done.state: "halted" is none of`},
		{swap("{state: ended, outcome: ok}", "{state: running, outcome: ok}"), "line 25: states.done.outcome: only what is ended has an outcome"},
		{swap("  where: item.name == task.key\n", ""), "line 27: find: where is missing"},
		{swap("find:\n  list: {request: {path: /jobs}, items: $.jobs}\n  where: item.name == task.key\n  id: $.id\n", ""), "warning: line 16: create: a job whose create was not answered"},
		{swap("  one: {request", "  list: {items: $.jobs, request"), "line 22: watch.list.request.path: in expression"},
		{swap("  one: {request: {path: \"/jobs/${id}\"}}\n", "  list: {request: {path: /jobs}, items: $.jobs}\n"), "line 23: watch.status: id is missing"},
		{swap("stop: {", "delete: {"), ""},
		{swap("stop: {request: {method: DELETE, path: \"/jobs/${id}\"}}\n", ""), "nothing ends a job"},
		{swap("stop: {", "suspend: {"), "suspend and resume belong together"},
		{swap("stream: stdout", "stream: log"), `line 31: logs[0].stream: "log" is neither stdout nor stderr`},
		{swap("stream: stdout", "follow: marker, stream: stdout"), "line 31: logs[0]: to follow by marker needs next"},
		{swap("required: true", "required: true, default: x"), "warning: line 5: settings.endpoint: it is required"},
		{swap("required: true", "pattern: '('"), "line 5: settings.endpoint.pattern: it is not an RE2 expression"},
		{swap("endpoint: {about", "end-point: {about: x}\n  endpoint: {about"), `"end-point" is not a name`},
		{swap("endpoint: {about", "other: {about: x}\n  endpoint: {about"), "warning: line 5: settings.other: nothing uses it"},
		{add("sandbx: vm\n"), `line 4: sandbx: unknown field "sandbx"; did you mean "sandbox"?`},
		{swap("stream: stdout", "stream: stdout, folow: whole"), `line 31: logs[0].folow: unknown field "folow"; did you mean "follow"?`},
		{swap("request: {path: /flavors}", "request: {path: /flavors, xyzzy: 1}"), `line 11: pools.list.request.xyzzy: unknown field "xyzzy"; it is one of operation, params`},
		{add("limits: {timeout: soon}\n"), `line 4: limits.timeout: "soon" is not a time`},
		{swap("pcm: adapter/1\n", ""), "pcm is missing"},
		{swap("${task.command}", "${task.comand}"), `line 19: create.request.body: task has no field "comand"; did you mean "command"?`},
		{swap("${task.command}", "${task.scrip}"), `did you mean "script"?`},
		{swap("size: 3", `size: "${pool.nativ.x}"`), `line 19: create.request.body: pool has no field "nativ"; did you mean "native"?`},
		{swap("size: 3", `size: "${data.input.size()}"`), `line 19: create.request.body: data has no field "input"; did you mean "inputs"?`},
		{swap(`argv: "${task.command}", `, ""), "warning: line 16: create: nothing in it says what the job runs"},
		{swap(`name: "${task.key}", `, ""), "line 16: create: find looks for task.key, which create doesn't say"},
		{swap(`name: "${task.key}", `, `name: "${task.name}", `), "line 16: create: find looks for task.key, which create doesn't say"},
		{swap(`name: "${task.key}", `, `all: "${task}", `), ""},
		{swap("where: item.name == task.key", `where: "true"`), "line 28: find.where: it doesn't look at the item"},
		{swap("where: item.name == task.key", `where: item.name == "mine"`), "line 28: find.where: it looks for nothing of the task"},
		{swap(`DELETE, path: "/jobs/${id}"`, `DELETE, path: "/jobs"`), "line 32: stop.request: it doesn't say which job is meant"},
		{swap(`DELETE, path: "/jobs/${id}"`, `DELETE, path: "/jobs/${task.name}"`), ""},
		{swap("stop: {", "kill: {request: {method: POST, path: /kill}}\nstop: {"), "line 32: kill.request: it doesn't say which job is meant"},
		{swap("stop: {", "delete: {request: {method: DELETE, path: /jobs}}\nstop: {"), "line 32: delete.request: it doesn't say which job is meant"},
		{swap(`"/jobs/${id}/log"`, "/log"), "line 31: logs[0].request: it doesn't say which job is meant"},
		{swap(`one: {request: {path: "/jobs/${id}"}}`, "one: {request: {path: /jobs}}"), "line 22: watch.one.request: it asks the same of every job"},
		{[2]string{`argv: "${task.command}", size: 3}
  id: $.id
watch:
  one: {request: {path: "/jobs/${id}"}}
  status: {state: $.state}
states:
  done: {state: ended, outcome: ok}`, `argv: "${task.script}", size: 3}
  id: $.id
watch:
  one: {request: {path: "/jobs/${id}"}}
  status: {state: $.state}
states:
  done: {state: ended, outcome: failed}`}, "states: no word has the outcome ok"},
		{add("features: [network]\nlacks: {network: no}\n"), `line 5: lacks: "network" contradicts features`},
		{add("features: [image]\nlacks: {images: no}\n"), `line 5: lacks: "images" contradicts features`},
		{add("sandbox: jail\n"), `warning: line 4: sandbox: "jail" is no word that buyers know`},
		{add("sandbox: None\n"), `line 4: sandbox: "None" opens the pools to tasks of others`},
		{add("sandbox: container\n"), ""},
		{swap("name: small", "name: slurm"), `line 2: name: "slurm" is the name of an adapter that is built in`},
		{swap(`cpu: "${item.cpus}"`, "cpu: two"), `line 14: pools.pool.cpu: cpu "two" is not an amount`},
		{swap(`cpu: "${item.cpus}"`, "cpu: 2"), ""},
		{swap(`cpu: "${item.cpus}"`, `cpu: "${item.cpus}", slots: "${'many'}"`), `line 14: pools.pool.slots: "many" is not a whole number`},
		{swap(`"${item.mib} MiB"`, "1 GiX"), "line 14: pools.pool.memory: "},
		{swap(`id: "${item.id}"`, "id: one"), "warning: line 14: pools.pool.id: it is the same for each item"},
	} {
		if !strings.Contains(small, c.change[0]) {
			t.Fatalf("no %q", c.change[0])
		}
		d, problems := Parse([]byte(strings.Replace(small, c.change[0], c.change[1], 1)))
		if c.want == "" {
			if len(problems) > 0 {
				t.Errorf("%s: %v", c.change[1], problems)
			}
			continue
		}
		found, errs := false, false
		for _, p := range problems {
			text := p.String()
			if p.Warning {
				text = "warning: " + text
			} else {
				errs = true
			}
			found = found || strings.Contains(text, c.want) && strings.HasPrefix(text, "warning: ") == strings.HasPrefix(c.want, "warning: ")
		}
		if !found || errs != (d == nil) {
			t.Errorf("%s:\n%v\nwant %q", c.change[1], problems, c.want)
		}
	}
}

// What is wrong with a secret's place never shows the secret.
func TestLintHidesSecrets(t *testing.T) {
	const secret = "AKIAIOSFODNN7EXAMPLE"
	for _, place := range []string{"login: {kind: bearer, token: %s}", "login: {kind: basic, username: u, password: %s}", "login: {kind: none}\ndata: {store: s3, access_key: %s}"} {
		_, problems := Parse([]byte(strings.Replace(small, "login: {kind: none}", fmt.Sprintf(place, secret), 1)))
		if len(problems) == 0 || strings.Contains(fmt.Sprint(problems), secret) {
			t.Errorf("%s: %v", place, problems)
		}
	}
}
