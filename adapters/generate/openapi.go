package generate

import (
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"unicode"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters/rest/description"
)

// clientSyntax is how a language names and types what an OpenAPI document has. Such a
// document is somebody else's text: names are made of its letters and digits, all the
// rest are texts as the language quotes them, or comments of one line.
type clientSyntax struct {
	name   func(words []string) string                                              // of a function: getJob
	arg    func(words []string) string                                              // of a parameter; nil: parameters go by the document's names
	quote  func(string) string                                                      // unless it is as elsewhere
	pair   func(key, value string) string                                           // of a table
	taken  string                                                                   // names that are the language's or the client's own
	schema func(p *Project, s description.Schema, typeName func(int) string) string // a type, in which objects go by name
}

// Operation is a call of an OpenAPI document, with names that languages take.
type Operation struct {
	description.Operation
	Name  string // of the function: getJob
	About []string
	Args  []Arg
	Needs bool   // one of the arguments at least
	Takes string // type of the body; "" for none
	Gives string // type of the answer; "" for none
	Shape string // of the answer, if it has to be one: "object" or "array"
}

// Arg is what a call is given beside its body.
type Arg struct {
	Name     string // as the language has it
	Param    string // as the document has it
	Type     string
	Required bool
	Null     bool     // null is a value of it
	In       []string // path, query or header, or several
	Join     string   // between the items of a list in a query
}

// Object is a type of an OpenAPI document.
type Object struct {
	Name   string
	Fields []ObjectField
}

// ObjectField is one of its fields.
type ObjectField struct {
	Name     string
	Type     string
	Optional bool
}

// Login is what a request shows of a secret.
type Login struct {
	Kind   string // bearer, basic, header or query
	As     string // the header or parameter
	Secret string // name of the site's secret
}

// Word is one that the back end has for a state.
type Word struct {
	Word, State, Outcome string
	Known                bool // the meaning is plain
}

// api makes what templates see of an OpenAPI document.
func (p *Project) api(doc *description.API, lang *language) error {
	c := lang.client
	if c.quote != nil {
		p.emitter.Text = c.quote
	}
	names := newNames("True False None Any Literal Required TypedDict") // Python's with a capital
	typeNames := make([]string, len(doc.Types))
	for i, t := range doc.Types {
		typeNames[i] = names.take(capital(t.Name), "Type")
	}
	byName := func(i int) string { return typeNames[i] }
	for i, t := range doc.Types {
		o := Object{Name: typeNames[i]}
		for _, f := range t.Fields {
			// What is in answers is what the other side says: any of it may be missing.
			o.Fields = append(o.Fields, ObjectField{f.Name, c.schema(p, f.Schema, byName), t.Answered || !f.Required})
		}
		p.Types = append(p.Types, o)
	}
	within := func(i int) string { return "t." + typeNames[i] }
	functions := newNames(c.taken)
	for _, op := range doc.Operations {
		if !strings.HasPrefix(op.Path, "/") {
			return pcm.Errorf(pcm.Invalid, "%s: the path %q does not begin with a slash", p.From, comment(op.Path))
		}
		id := op.ID
		if id == "" {
			id = strings.ToLower(op.Method) + " " + op.Path
		}
		out := Operation{Operation: op, Name: functions.take(c.name(words(id)), "call")}
		about := op.Method + " " + op.Path
		if op.Summary != "" {
			about += ": " + op.Summary
		}
		out.About = append(out.About, comment(about))
		out.Operation.Path, out.Upload = literalPath(op.Path), comment(op.Upload)
		out.args(p, c, within)
		if op.Body != nil {
			out.Takes = c.schema(p, op.Body.Schema, within)
			for _, f := range op.Body.Fields {
				out.About = append(out.About, comment("body: "+f))
			}
		}
		if op.Answer != nil {
			out.Gives = c.schema(p, *op.Answer, within)
			switch {
			case op.Answer.Null:
			case op.Answer.Kind == "object" || op.Answer.Kind == "map":
				out.Shape = "object"
			case op.Answer.Kind == "array":
				out.Shape = "array"
			}
		}
		p.Moves = p.Moves || op.Raw || op.Upload != ""
		p.Operations = append(p.Operations, out)
	}
	secrets := newNames("")
	for _, s := range doc.Logins {
		l := Login{Kind: s.Kind, As: s.As}
		switch s.Kind {
		case "bearer":
			l.Secret = secrets.take("token", "")
		case "basic":
			l.Secret = secrets.take("password", "")
		default:
			l.Secret = secrets.take(snake(words(s.Name)), "key")
		}
		p.Logins = append(p.Logins, l)
	}
	for _, name := range doc.Unknown {
		p.Unknown = append(p.Unknown, comment(name))
	}
	p.Server, p.Endpoint = doc.Server, "…"
	if u, err := url.Parse(p.Server); err == nil && u.Host != "" && p.Server == comment(p.Server) {
		p.Endpoint = p.Server
	}
	p.Words = stateWords(doc)
	return nil
}

var placeholder = regexp.MustCompile(`\{[^{}]*\}`)

// args are those of an operation: one for each name, wherever it goes.
func (op *Operation) args(p *Project, c *clientSyntax, typeName func(int) string) {
	params := slices.Clone(op.Params)
	for _, name := range placeholder.FindAllString(op.Operation.Path, -1) {
		name = strings.Trim(name, "{}")
		if !slices.ContainsFunc(params, func(q description.Param) bool { return q.In == "path" && q.Name == name }) {
			params = append(params, description.Param{Name: name, In: "path", Required: true, Schema: description.Schema{Kind: "string"}})
		}
	}
	names := newNames("self body to most t p seconds")
	for _, q := range params {
		needed := ""
		if q.Required {
			needed = ", needed"
		}
		op.About = append(op.About, comment(q.In+": "+q.Name+needed))
		switch q.In {
		case "path":
			q.Required = true
		case "query":
		case "header":
			if !plainHeader.MatchString(q.Name) || slices.Contains([]string{"accept", "content-type", "authorization", "host", "content-length", "transfer-encoding"}, strings.ToLower(q.Name)) {
				continue
			}
		default:
			continue // cookies are the author's
		}
		i := slices.IndexFunc(op.Args, func(a Arg) bool { return a.Param == q.Name })
		if i < 0 {
			a := Arg{Param: q.Name, Null: q.Schema.Null, Type: c.schema(p, q.Schema, typeName)}
			if c.arg != nil {
				a.Name = names.take(c.arg(words(q.Name)), "arg")
			}
			op.Args, i = append(op.Args, a), len(op.Args)
		}
		a := &op.Args[i]
		a.Required = a.Required || q.Required
		a.In = append(a.In, q.In)
		if q.In == "query" {
			a.Join = q.Join
		}
		op.Needs = op.Needs || q.Required
	}
}

var plainHeader = regexp.MustCompile("^[A-Za-z0-9!#$%&'*+.^_`|~-]+$")

// Params are an operation's parameters of one place as items of a list: "path", "header".
// "joins" are those of the query with what stands between the items of a list.
func (p *Project) Params(op Operation, in string) string {
	var items []string
	for _, a := range op.Args {
		switch {
		case in == "joins" && a.Join != "":
			items = append(items, languages[p.Language].client.pair(p.emitter.Text(a.Param), p.emitter.Text(a.Join)))
		case slices.Contains(a.In, in):
			items = append(items, p.emitter.Text(a.Param))
		}
	}
	return strings.Join(items, ", ")
}

// Hint are the operations that a step of an adapter is perhaps made of.
func (p *Project) Hint(step string) (all []string) {
	for _, op := range p.Operations {
		path := strings.ToLower(op.Path)
		parent, end := path[:strings.LastIndexByte(path, '/')], path[strings.LastIndexByte(path, '/')+1:]
		one := strings.HasSuffix(end, "}") && p.offers("GET", parent)
		last := end
		if strings.HasPrefix(end, "{") {
			last = parent[strings.LastIndexByte(parent, '/')+1:]
		}
		has := func(parts ...string) bool {
			return slices.ContainsFunc(parts, func(part string) bool { return strings.Contains(last, part) })
		}
		fits := false
		switch step {
		case "pools":
			fits = op.Method == "GET" && has("flavor", "spec", "type", "size", "pool", "queue", "quota", "node", "partition", "resource")
		case "find":
			fits = op.Method == "GET" && p.offers("POST", path)
		case "start":
			fits = op.Method == "POST" && p.offers("GET", path)
		case "poll":
			fits = op.Method == "GET" && (one || p.offers("POST", path))
		case "logs":
			fits = op.Method == "GET" && has("log", "output", "stdout", "console")
		case "stop":
			fits = op.Method == "DELETE" && one || op.Method != "GET" && has("stop", "cancel", "kill", "terminate", "abort", "signal")
		case "outputs":
			fits = op.Method == "GET" && has("output", "file", "artifact", "result", "archive", "download")
		case "remove":
			fits = op.Method == "DELETE" && one
		}
		if fits && len(all) < 4 {
			all = append(all, op.Name)
		}
	}
	return all
}

// offers tells whether there is such a call.
func (p *Project) offers(method, path string) bool {
	return slices.ContainsFunc(p.Operations, func(op Operation) bool {
		return op.Method == method && strings.EqualFold(op.Path, path)
	})
}

// Guessed tells whether a word of the table of states has no plain meaning, or no word is known.
func (p *Project) Guessed() bool {
	return len(p.Words) == 0 || slices.ContainsFunc(p.Words, func(w Word) bool { return !w.Known })
}

// meanings are of words that back ends use for the states of what they run.
var meanings = []struct{ state, outcome, words string }{
	{"pending", "", "accepted allocating configuring created creating deploying held hold initialized initializing initialising new pending preparing provisioning pulling queued queueing requested scheduled scheduling starting submitted waiting"},
	{"running", "", "active aborting canceling cancelling completing deleting executing finishing inprogress killing processing progress running started stopping terminating working"},
	{"suspended", "", "frozen paused suspended"},
	{"ended", "ok", "complete completed done finished ok succeeded success successful"},
	{"ended", "failed", "crashed error errored failed failure"},
	{"ended", "time_limit", "deadlineexceeded expired timedout timeout"},
	{"ended", "memory", "oom oomkilled outofmemory"},
	{"ended", "stopped", "aborted canceled cancelled deleted killed stopped"},
	{"ended", "lost", "lost"},
}

// stateWords are those of the enum that a job's state is of.
func stateWords(doc *description.API) (all []Word) {
	best := 0
	var found []string
	for _, t := range doc.Types {
		for _, f := range t.Fields {
			name, of := strings.ToLower(f.Name), strings.ToLower(t.Name)
			if !t.Answered || len(f.Schema.Enum) == 0 || !strings.HasSuffix(name, "state") && !strings.HasSuffix(name, "status") && name != "phase" {
				continue
			}
			score := 1
			for _, kind := range []string{"job", "task", "run", "execution", "workload", "instance", "server", "pod", "container"} {
				if strings.Contains(of, kind) {
					score = 2
				}
			}
			if score > best {
				best, found = score, f.Schema.Enum
			}
		}
	}
	for _, w := range found {
		word := Word{Word: w, State: "running"}
		parts := words(w)
		for i := range parts {
			rest := strings.ToLower(strings.Join(parts[i:], ""))
			for _, m := range meanings {
				if !word.Known && slices.Contains(strings.Fields(m.words), rest) {
					word.State, word.Outcome, word.Known = m.state, m.outcome, true
				}
			}
		}
		all = append(all, word)
	}
	return all
}

// literalPath is a path whose own text can stand in an address, whatever was in it.
func literalPath(path string) string {
	var b strings.Builder
	at := 0
	literal := func(s string) {
		for _, c := range []byte(s) {
			if c > ' ' && c < 0x7f && !strings.ContainsRune("\"#<>\\^`{}|", rune(c)) {
				b.WriteByte(c)
			} else {
				fmt.Fprintf(&b, "%%%02X", c)
			}
		}
	}
	for _, hole := range placeholder.FindAllStringIndex(path, -1) {
		literal(path[at:hole[0]])
		b.WriteString(path[hole[0]:hole[1]])
		at = hole[1]
	}
	literal(path[at:])
	return b.String()
}

// comment makes one line of a text, which ends no comment, hides nothing and has a bound.
func comment(s string) string {
	s = oneLine(strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || !unicode.IsSpace(r) && !unicode.IsPrint(r) {
			return -1 // what controls, or turns the direction
		}
		return r
	}, s))
	s = strings.NewReplacer("*/", "* /", `"""`, `" " "`, beginMark, "pcm: begin ", endMark, "pcm: end ").Replace(s)
	if r := []rune(s); len(r) > 200 {
		s = string(r[:200]) + "…"
	}
	return s
}

// words are those of a name: of "getHTTPStatus-v2" get, HTTP, Status, v2.
func words(s string) (all []string) {
	if len(s) > 200 {
		s = s[:200]
	}
	letter := func(c byte) bool { return 'a' <= c && c <= 'z' || '0' <= c && c <= '9' }
	upper := func(c byte) bool { return 'A' <= c && c <= 'Z' }
	begin := -1
	for i := 0; i <= len(s); i++ {
		in := i < len(s) && (letter(s[i]) || upper(s[i]))
		edge := in && begin >= 0 && begin < i && upper(s[i]) && (letter(s[i-1]) || i+1 < len(s) && 'a' <= s[i+1] && s[i+1] <= 'z')
		if begin >= 0 && (!in || edge) {
			all, begin = append(all, s[begin:i]), -1
		}
		if in && begin < 0 {
			begin = i
		}
	}
	return all
}

// camel is a name like getJobLog: what the words have of capitals stays.
func camel(words []string) string {
	var b strings.Builder
	for i, w := range words {
		if i == 0 {
			b.WriteString(strings.ToLower(w[:1]) + w[1:])
		} else {
			b.WriteString(strings.ToUpper(w[:1]) + w[1:])
		}
	}
	return b.String()
}

// capital is a name like JobLog.
func capital(s string) string {
	var b strings.Builder
	for _, w := range words(s) {
		b.WriteString(strings.ToUpper(w[:1]) + w[1:])
	}
	return b.String()
}

// snake is a name like get_job_log.
func snake(words []string) string { return strings.ToLower(strings.Join(words, "_")) }

// names gives each thing one of its own.
type names struct {
	taken map[string]bool // and the language's words
	asked map[string]int
}

func newNames(words string) names {
	n := names{map[string]bool{}, map[string]int{}}
	for _, w := range strings.Fields(words) {
		n.taken[w] = true
	}
	return n
}

// take is a name that nothing else has; otherwise is what it begins with where it has no letter to begin with.
func (n names) take(name, otherwise string) string {
	if name == "" || '0' <= name[0] && name[0] <= '9' {
		name = otherwise + name
	}
	unique := name
	if n.taken[unique] && n.asked[name] == 0 {
		unique += "_" // a word of the language
	}
	for n.taken[unique] {
		n.asked[name] = max(n.asked[name], 1) + 1
		unique = fmt.Sprint(name, n.asked[name])
		if last := name[len(name)-1]; '0' <= last && last <= '9' {
			unique = fmt.Sprint(name, "_", n.asked[name])
		}
	}
	n.asked[name] = max(n.asked[name], 1)
	n.taken[unique] = true
	return unique
}
