package description

import (
	"fmt"
	"net/http"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/expr"
)

var identifier = regexp.MustCompile(`^[a-z_][a-z0-9_]{0,62}$`)

func near(name string, known []string) string {
	if n := pcm.Nearest(name, known); n != "" {
		return fmt.Sprintf("; did you mean %q?", n)
	}
	return ""
}

func (c *compiler) warn(path, format string, args ...any) {
	c.add(path, format, args...)
	c.problems[len(c.problems)-1].Warning = true
}

// required reports fields that are missing from a struct that is there.
func (c *compiler) required(path string, v reflect.Value) {
	for i := range v.NumField() {
		f := v.Type().Field(i)
		name, options, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		if options != "" || !v.Field(i).IsZero() || name == "servers" && c.d.Login.Kind == "keystone" {
			continue
		}
		if name == "pcm" || name == "name" { // said better by check
			continue
		}
		c.add(path, "%s is missing", name)
	}
}

// inspect checks one part of the description by itself.
func (c *compiler) inspect(path string, part any) {
	switch p := part.(type) {
	case *Setting:
		c.setting(path, p)
	case *Request:
		c.request(path, p)
	case *Call:
		for i, status := range slices.Concat(p.OK, p.Missing) {
			if status < 100 || status > 599 {
				c.add(fmt.Sprintf("%s.ok[%d]", path, i), "%d is not a status of HTTP", status)
			}
		}
	case *Paging:
		c.paging(path, p)
	case *State:
		c.state(path, p)
	case *Log:
		c.log(path, p)
	case *Data:
		c.data(path, p)
	case *Limits:
		if p.Rate < 0 || p.Rate > 1000 || p.Burst < 0 || p.Burst > 1000 || p.Tries < 0 || p.Tries > 20 || p.MaxJobs < 0 {
			c.add(path, "rate and burst are from 0 to 1000, tries from 0 to 20, max_jobs is not under 0")
		}
	}
}

func (c *compiler) setting(path string, s *Setting) {
	if s.Required && s.Default != "" {
		c.warn(path, "it is required, so its default is never used")
	}
	if s.Pattern != "" {
		re, err := regexp.Compile("^(?:" + s.Pattern + ")$")
		switch {
		case err != nil:
			c.add(path+".pattern", "it is not an RE2 expression: %v", err)
		case s.Default != "" && !re.MatchString(s.Default):
			c.add(path+".default", "%q does not match the pattern %s", s.Default, s.Pattern)
		}
	}
	c.secrets(path+".default", path, s.Default)
	c.secrets(path+".example", path, s.Example)
}

var methods = []string{"", http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete}

func (c *compiler) request(path string, r *Request) {
	if !slices.Contains(methods, r.Method) {
		c.add(path+".method", "%q is none of %s", r.Method, strings.Join(methods[1:], ", "))
	}
	server := r.Server
	if server == "" {
		server = "api"
	}
	if _, ok := c.d.Servers[server]; !ok && (server != "api" || c.d.Login.Service == "") {
		c.add(path+".server", "no server is called %q%s", server, near(server, sorted(c.d.Servers)))
	}
	if text, ok := r.Path.raw.(string); r.Path.given && (!ok || strings.Contains(strings.SplitN(text, "${", 2)[0], "://")) {
		c.add(path+".path", "it is not a path below the server's URL: name another server below servers")
	}
	if !r.Path.given && r.Operation == "" {
		c.add(path, "path is missing")
	}
	if r.Body.given && len(r.Form) > 0 {
		c.add(path, "body and form exclude each other")
	}
	if r.Body.given && slices.Contains(methods[:3], r.Method) && r.Operation == "" {
		c.warn(path+".body", "servers may ignore what a GET sends: say method: POST or another")
	}
	if r.Answer != "" && r.Answer != "json" && r.Answer != "text" {
		c.add(path+".answer", "%q is neither json nor text", r.Answer)
	}
}

func (c *compiler) paging(path string, p *Paging) {
	needs := map[string][]string{"offset": {"param"}, "page": {"param"}, "marker": {"param", "marker"}, "link": {}, "url": {"marker"}}
	fields, ok := needs[p.Kind]
	if !ok {
		c.add(path+".kind", "%q is none of %s", p.Kind, strings.Join(sorted(needs), ", "))
		return
	}
	for _, f := range fields {
		if f == "param" && p.Param == "" || f == "marker" && !p.Marker.Given() {
			c.add(path, "paging of kind %s needs %s", p.Kind, f)
		}
	}
	if p.Param != "" && !slices.Contains(fields, "param") {
		c.add(path+".param", "it means nothing for paging of kind %s", p.Kind)
	}
	if p.Marker.Given() && !slices.Contains(fields, "marker") {
		c.add(path+".marker", "it means nothing for paging of kind %s", p.Kind)
	}
	if p.First != 0 && p.Kind != "page" && p.Kind != "offset" {
		c.add(path+".first", "it means nothing for paging of kind %s", p.Kind)
	}
	if p.In != "" && p.In != "query" && p.In != "body" {
		c.add(path+".in", "%q is neither query nor body", p.In)
	}
	if p.Limit < 0 || p.Limit > 10_000 {
		c.add(path+".limit", "%d is out of range: 1 to 10000", p.Limit)
	}
}

var outcomes = []string{
	string(pcm.OutcomeOK), string(pcm.OutcomeFailed), string(pcm.OutcomeTimeLimit), string(pcm.OutcomeMemory),
	string(pcm.OutcomeOutput), string(pcm.OutcomeStopped), "lost",
}

func (c *compiler) state(path string, s *State) {
	known := []string{string(adapters.Pending), string(adapters.Running), string(adapters.Suspended), string(adapters.Ended)}
	switch {
	case s.State == "": // said already
	case !slices.Contains(known, s.State):
		c.add(path+".state", "%q is none of %s%s", s.State, strings.Join(known, ", "), near(s.State, known))
	case s.State == string(adapters.Ended) && s.Outcome == "":
		c.add(path, "a state that is ended needs an outcome: %s", strings.Join(outcomes, ", "))
	case s.State != string(adapters.Ended) && s.Outcome != "":
		c.add(path+".outcome", "only what is ended has an outcome")
	}
	if s.Outcome != "" && !slices.Contains(outcomes, s.Outcome) {
		c.add(path+".outcome", "%q is none of %s%s", s.Outcome, strings.Join(outcomes, ", "), near(s.Outcome, outcomes))
	}
}

func (c *compiler) log(path string, l *Log) {
	if l.Stream != "" && l.Stream != string(adapters.Stdout) && l.Stream != string(adapters.Stderr) {
		c.add(path+".stream", "%q is neither stdout nor stderr", l.Stream)
	}
	called := !reflect.ValueOf(l.Call).IsZero()
	switch {
	case called && l.Object.given:
		c.add(path, "request and object exclude each other")
	case !called && !l.Object.given:
		c.add(path, "request is missing, or object")
	case l.Object.given && c.d.Data == nil:
		c.add(path+".object", "there is no section data that says where objects are")
	}
	switch {
	case !slices.Contains([]string{"", "whole", "offset", "marker", "tail"}, l.Follow):
		c.add(path+".follow", "%q is none of whole, offset, marker, tail", l.Follow)
	case l.Follow == "marker" && !l.Next.Given():
		c.add(path, "to follow by marker needs next")
	case l.Follow != "marker" && l.Next.Given():
		c.add(path+".next", "it means nothing unless follow is marker")
	}
}

func (c *compiler) data(path string, d *Data) {
	switch d.Store {
	case "":
	case "s3":
		for name, ok := range map[string]bool{"endpoint": d.Endpoint.given, "bucket": d.Bucket.given, "access_key": d.AccessKey != "", "secret_key": d.SecretKey != ""} {
			if !ok {
				c.add(path, "a store s3 needs %s", name)
			}
		}
	case "presigned":
		if d.Upload == nil {
			c.add(path, "a store presigned needs upload")
		}
		if d.Download == nil {
			c.add(path, "a store presigned needs download")
		}
	default:
		c.add(path+".store", "%q is neither s3 nor presigned", d.Store)
	}
	if d.AccessKey != "" {
		c.secret(path+".access_key", c.d, d.AccessKey)
	}
	if d.SecretKey != "" {
		c.secret(path+".secret_key", c.d, d.SecretKey)
	}
	if !slices.Contains([]string{"", "files", "tar"}, d.Pack) {
		c.add(path+".pack", "%q is neither files nor tar", d.Pack)
	}
	if !slices.Contains([]string{"", "s3", "obs", "https"}, d.Scheme) {
		c.add(path+".scheme", "%q is none of s3, obs, https", d.Scheme)
	}
}

// refer notes what expressions read, and checks that it is there.
func (c *compiler) refer(path string, exprs ...*expr.Expr) {
	for _, x := range exprs {
		for _, ref := range x.Refs() {
			c.reads = append(c.reads, read{path, ref})
			parts := strings.Split(ref, ".")
			if known := fields[parts[0]]; known != nil && len(parts) > 1 && !slices.Contains(known, parts[1]) {
				c.add(path, "%s has no field %q%s: it has %s", parts[0], parts[1], near(parts[1], known), strings.Join(known, ", "))
			}
			switch {
			case parts[0] == "settings" && len(parts) == 1:
				for name := range c.d.Settings {
					c.used["settings."+name] = true
				}
			case parts[0] == "settings":
				c.named(path, "setting", "settings."+parts[1], parts[1], sorted(c.d.Settings))
			case parts[0] == "more" && len(parts) > 1:
				var names []string
				for _, m := range c.d.Pools.More {
					names = append(names, m.Name)
				}
				c.named(path, "call below pools.more", "more."+parts[1], parts[1], names)
			case parts[0] == "task" && len(parts) > 2 && parts[1] == "let":
				c.named(path, "value below let", "let."+parts[2], parts[2], c.lets(path))
			case parts[0] == "task" && len(parts) > 2 && parts[1] == "step":
				var names []string
				for _, s := range c.d.Create.Before {
					names = append(names, s.Name)
				}
				c.named(path, "step below create.before", "step."+parts[2], parts[2], names)
			case ref == "task.let", ref == "task":
				for _, l := range c.d.Let {
					c.used["let."+l.Name] = true
				}
			}
		}
	}
}

// lets are the names that a place may use: within let only those before it.
func (c *compiler) lets(path string) (names []string) {
	var at int
	within, _ := fmt.Sscanf(path, "$.let[%d]", &at)
	for i, l := range c.d.Let {
		if within == 1 && i >= at {
			break
		}
		names = append(names, l.Name)
	}
	return names
}

func (c *compiler) named(path, what, use, name string, known []string) {
	c.used[use] = true
	if !slices.Contains(known, name) {
		c.add(path, "no %s is called %q%s", what, name, near(name, known))
	}
}

// check finds what is missing in, or contradicts, the description as a whole.
func (c *compiler) check(d *Description) {
	switch d.PCM {
	case Format:
	case "":
		c.add("$.pcm", "pcm is missing, which says what form this is: write pcm: %s", Format)
	default:
		c.add("$.pcm", "the form is %q: this version reads %q", d.PCM, Format)
	}
	switch {
	case !pcm.ValidName(d.Name):
		c.add("$.name", "%q is not a name of lower-case letters, digits, dots and dashes", d.Name)
	case slices.Contains(adapters.BuiltIn, d.Name):
		c.add("$.name", "%q is the name of an adapter that is built in, so that nodes refuse this one: choose another", d.Name)
	}
	c.sandbox(d.Sandbox)
	c.login(d)
	c.names(d)
	c.features(d)
	if d.Pools.List == nil && len(d.Pools.Fixed) == 0 {
		c.add("$.pools", "it needs a list, or items that are fixed")
	}
	if d.Pools.List != nil && len(d.Pools.Fixed) > 0 {
		c.add("$.pools.fixed", "list and fixed exclude each other")
	}
	if f := d.Find; f.List != nil {
		if !f.Where.Given() {
			c.add("$.find", "where is missing: which item is the attempt's")
		}
		if !f.ID.Given() {
			c.add("$.find", "id is missing")
		}
	} else if repeat := d.Create.Request.Repeat; len(d.Create.Exists) == 0 && (repeat == nil || !*repeat) && d.Create.Request.Method != http.MethodPut {
		c.warn("$.create", "a job whose create was not answered is given up, and may run on: add find, or say repeat: true if the server takes a second create with one name for the first")
	}
	switch w := d.Watch; {
	case w.List == nil && w.One == nil:
		c.add("$.watch", "it needs a list, or one: a call for each job")
	case w.List != nil && !w.Status.ID.Given():
		c.add("$.watch.status", "id is missing: which job an item of the list is")
	}
	if d.Stop == nil && d.Kill == nil && d.Delete == nil {
		c.add("$", "nothing ends a job: describe stop, kill or delete")
	}
	if (d.Suspend == nil) != (d.Resume == nil) {
		c.add("$", "suspend and resume belong together")
	}
	if len(d.Logs) == 0 {
		c.warn("$", "there are no logs: nothing will be seen of what tasks print")
	}
	c.ends(d)
	c.jobs(d)
	c.links(d)
	c.many(d)
	c.amounts(d)
	c.unused(d)
}

// ends checks that a job can come to its end.
func (c *compiler) ends(d *Description) {
	if len(d.States) == 0 {
		return // said already
	}
	ended, ok := false, false
	for _, s := range d.States {
		ended = ended || s.State == string(adapters.Ended)
		ok = ok || s.Outcome == string(pcm.OutcomeOK)
	}
	switch {
	case !ended:
		c.add("$.states", "no word means that a job is ended, so none ever would be")
	case !ok: // also that of a script, whose exit code counts where the outcome is ok or failed
		c.add("$.states", "no word has the outcome ok, so no job could end well: say which word means that a job came to its end by itself")
	}
}

func (c *compiler) features(d *Description) {
	can := []string{string(pcm.FeatureCommand), string(pcm.FeatureImage), string(pcm.FeatureNetwork), string(pcm.FeatureSuspend)}
	for i, f := range d.Features {
		path := fmt.Sprintf("$.features[%d]", i)
		if !slices.Contains(can, f) {
			c.add(path, "%q is nothing that a description can give: it is one of %s", f, strings.Join(can, ", "))
		}
		if f == string(pcm.FeatureSuspend) && d.Suspend == nil {
			c.add(path, "there is no call suspend")
		}
	}
	for feature, name := range map[pcm.Feature]string{pcm.FeatureImage: "images", pcm.FeatureNetwork: "network", pcm.FeatureSuspend: "suspend and resume"} {
		if _, lacks := d.Lacks[name]; lacks && slices.Contains(d.Features, string(feature)) {
			c.add("$.lacks", "%q contradicts features, which names %s: take one of them away", name, feature)
		}
	}
	if _, lacks := d.Lacks["arrays"]; lacks && d.Create.Many != nil {
		c.add("$.lacks", "\"arrays\" contradicts create.many, which makes them: take one of them away")
	}
	for _, name := range sorted(d.Lacks) {
		if !slices.Contains(adapters.Capabilities, name) {
			c.add("$.lacks", "%q is no capability that adapters are tested for%s", name, near(name, adapters.Capabilities))
		}
		if strings.TrimSpace(d.Lacks[name]) == "" {
			c.add("$.lacks", "%q has no reason", name)
		}
	}
	if d.Bridge != nil {
		for _, name := range sorted(d.Bridge.Classes) {
			if _, ok := pcm.FindClass(name); !ok {
				c.warn("$.bridge.classes", "%q is no class of ours: 'pcm class list' shows them", name)
			}
		}
	}
}

// names checks those that expressions use.
func (c *compiler) names(d *Description) {
	valid := func(path, name string) {
		if !identifier.MatchString(name) {
			c.add(path, "%q is not a name of lower-case letters, digits and _", name)
		}
	}
	for _, name := range sorted(d.Settings) {
		valid("$.settings", name)
	}
	for _, name := range sorted(d.Secrets) {
		valid("$.secrets", name)
	}
	unique := func(path string, seen map[string]bool, name string) {
		valid(path, name)
		if seen[name] {
			c.add(path, "the name %q is taken", name)
		}
		seen[name] = true
	}
	lets, steps, more := map[string]bool{}, map[string]bool{}, map[string]bool{}
	for i, l := range d.Let {
		unique(fmt.Sprintf("$.let[%d]", i), lets, l.Name)
	}
	for i, s := range d.Create.Before {
		unique(fmt.Sprintf("$.create.before[%d]", i), steps, s.Name)
	}
	for i, m := range d.Pools.More {
		unique(fmt.Sprintf("$.pools.more[%d]", i), more, m.Name)
	}
}

// unused warns of what is declared and not used.
func (c *compiler) unused(d *Description) {
	for _, name := range sorted(d.Settings) {
		if !c.used["settings."+name] {
			c.warn("$.settings."+name, "nothing uses it")
		}
	}
	for _, name := range sorted(d.Secrets) {
		if !c.used["secrets."+name] {
			c.warn("$.secrets."+name, "nothing uses it")
		}
	}
	for i, l := range d.Let {
		if !c.used["let."+l.Name] {
			c.warn(fmt.Sprintf("$.let[%d]", i), "nothing uses %s", l.Name)
		}
	}
	for i, m := range d.Pools.More {
		if !c.used["more."+m.Name] {
			c.warn(fmt.Sprintf("$.pools.more[%d]", i), "nothing uses %s", m.Name)
		}
	}
}
