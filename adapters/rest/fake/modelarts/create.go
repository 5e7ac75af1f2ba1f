package modelarts

import (
	"encoding/json"
	"fmt"
	"net/http"
	"path"
	"regexp"
	"strings"
)

var (
	namePattern = regexp.MustCompile(`^[a-zA-Z0-9_-]{1,64}$`)
	varPattern  = regexp.MustCompile(`^[a-zA-Z_][a-zA-Z0-9_]*$`)
)

// Where the service puts what has no local_dir.
const (
	home       = "/home/ma-user"
	mount      = home + "/modelarts"
	codeFolder = mount + "/user-job-dir"
	logFolder  = mount + "/log"
)

func (c *Cloud) serveCreate(_ http.ResponseWriter, _ *http.Request, body []byte) (int, any, error) {
	var in create
	if err := json.Unmarshal(body, &in); err != nil {
		return 0, nil, badRequest("the body is not JSON of a job: %v", err)
	}
	env, f, err := c.check(&in)
	if err != nil {
		return 0, nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return 0, nil, &apiError{503, "ModelArts.0013", "Connection fails."}
	}
	if c.living() >= c.o.Quota || len(c.order) >= maxJobs {
		return 0, nil, &apiError{400, "ModelArts.0106", "The maximum number of created resources has been exceeded: job-num"}
	}
	for _, j := range c.order {
		if c.o.UniqueNames && j.Metadata.Name == in.Metadata.Name {
			return 0, nil, &apiError{400, "ModelArts.0103", "Duplicate names: " + in.Metadata.Name}
		}
	}
	j := c.add(in, env, f)
	return http.StatusCreated, j.answer(c.o.Now()), nil
}

// check refuses what the real service refuses, and what the fake can't do. It fills in
// defaults and returns the job's variables and its flavor.
func (c *Cloud) check(in *create) (map[string]string, Flavor, error) {
	m, a := in.Metadata, in.Algorithm
	switch {
	case in.Kind == "":
		return nil, Flavor{}, badRequest("kind is required")
	case in.Kind != "job":
		return nil, Flavor{}, badRequest("kind %q is not supported: use job", in.Kind)
	case m == nil || m.Name == "":
		return nil, Flavor{}, badRequest("metadata.name is required")
	case !namePattern.MatchString(m.Name):
		return nil, Flavor{}, badRequest("metadata.name %q must have 1 to 64 digits, letters, underscores and hyphens", m.Name)
	case len([]rune(m.Description)) > maxDescribed:
		return nil, Flavor{}, badRequest("metadata.description has more than 256 characters")
	case m.Workspace != "" && m.Workspace != "0":
		return nil, Flavor{}, badRequest("metadata.workspace_id %q does not exist", m.Workspace)
	case a == nil:
		return nil, Flavor{}, badRequest("algorithm is required")
	}
	m.Workspace, m.UserName = "0", "fake"
	if err := c.checkProgram(a); err != nil {
		return nil, Flavor{}, err
	}
	env, err := variables(a.Environments)
	if err != nil {
		return nil, Flavor{}, err
	}
	if err := channels("inputs", a.Inputs); err != nil {
		return nil, Flavor{}, err
	}
	if err := channels("outputs", a.Outputs); err != nil {
		return nil, Flavor{}, err
	}
	f, err := c.checkSpec(in.Spec)
	return env, f, err
}

func (c *Cloud) checkProgram(a *recipe) error {
	switch {
	case a.ID != "" || a.Subscription != "":
		return &apiError{400, "ModelArts.2755", "algorithm not found."}
	case a.Engine == nil || *a.Engine == engine{}:
		return badRequest("algorithm.engine is required: engine_id, engine_name and engine_version, or image_url")
	case a.Engine.Image == "" && !c.hasEngine(a.Engine):
		return badRequest("algorithm.engine %q does not exist", a.Engine.ID+a.Engine.Name)
	case a.Engine.Image != "" && a.Command == "" && a.BootFile == "":
		return badRequest("algorithm.command is required for a custom image")
	case a.Engine.Image == "" && (a.CodeDir == "" || a.BootFile == ""):
		return badRequest("algorithm.code_dir and algorithm.boot_file are required")
	case (a.BootFile != "") && a.CodeDir == "":
		return badRequest("algorithm.boot_file must come with algorithm.code_dir")
	}
	for _, p := range []string{a.WorkingDir, a.LocalCodeDir} {
		if p != "" && !local(p) {
			return badRequest("%q is not an absolute path without \"..\"", p)
		}
	}
	if a.CodeDir != "" {
		if _, _, err := place(a.CodeDir); err != nil {
			return err
		}
	}
	return nil
}

func (c *Cloud) checkSpec(s *spec) (Flavor, error) {
	if s == nil || s.Resource == nil {
		return Flavor{}, badRequest("spec.resource is required")
	}
	r := s.Resource
	f, ok := c.flavor(r.FlavorID)
	switch {
	case r.PoolID != "":
		return f, badRequest("spec.resource.pool_id %q does not exist", r.PoolID)
	case r.FlavorID == "":
		return f, badRequest("spec.resource.flavor_id is required")
	case !ok:
		return f, badRequest("spec.resource.flavor_id %q does not exist", r.FlavorID)
	case r.NodeCount < 1:
		return f, badRequest("spec.resource.node_count is required and must be at least 1")
	case r.NodeCount > 1:
		return f, badRequest("spec.resource.node_count %d is more than max_num of the flavor, 1", r.NodeCount)
	case s.AutoStop != nil && (s.AutoStop.Unit != "HOURS" || s.AutoStop.Duration < 1 || s.AutoStop.Duration > 720):
		return f, badRequest("spec.auto_stop must have time_unit HOURS and a duration from 1 to 720")
	}
	if s.LogExport != nil && s.LogExport.URL != "" {
		if _, _, err := place(s.LogExport.URL); err != nil {
			return f, err
		}
	}
	detail := f.detail(false)
	r.Policy, r.FlavorName, r.FlavorDetail = "regular", f.Name, &detail
	return f, nil
}

// variables reads the environment, an object of texts.
func variables(v any) (map[string]string, error) {
	if v == nil {
		return nil, nil
	}
	all, ok := v.(map[string]any)
	if !ok {
		return nil, badRequest("algorithm.environments must be an object")
	}
	if len(all) > maxEnv {
		return nil, badRequest("algorithm.environments has %d variables, more than %d", len(all), maxEnv)
	}
	env := map[string]string{}
	for name, v := range all {
		text, ok := v.(string)
		if !ok || !varPattern.MatchString(name) || len(name) > maxEnvName || len(text) > maxEnvValue || strings.Contains(text, "\x00") {
			return nil, badRequest("algorithm.environments: %.64q must be a name of letters, digits and underscores with a text of at most %d characters", name, maxEnvValue)
		}
		env[name] = text
	}
	return env, nil
}

// channels checks inputs or outputs and fills in where they are.
func channels(field string, list []channel) error {
	seen := map[string]bool{}
	for i := range list {
		ch := &list[i]
		switch {
		case ch.Name == "":
			return badRequest("algorithm.%s: name is required", field)
		case !namePattern.MatchString(ch.Name) || seen[ch.Name]:
			return badRequest("algorithm.%s: the name %.64q is malformed or there twice", field, ch.Name)
		case ch.Remote == nil || ch.Remote.OBS == nil && ch.Remote.Dataset == nil:
			return badRequest("algorithm.%s: remote.obs of %q is required", field, ch.Name)
		case ch.Remote.OBS == nil:
			return badRequest("algorithm.%s: the dataset of %q does not exist", field, ch.Name)
		case ch.Access != "" && ch.Access != "parameter" && ch.Access != "env":
			return badRequest("algorithm.%s: access_method %.64q must be parameter or env", field, ch.Access)
		case ch.Access == "env" && !varPattern.MatchString(ch.Name):
			return badRequest("algorithm.%s: %q can't be the name of a variable", field, ch.Name)
		case ch.LocalDir != "" && !local(ch.LocalDir):
			return badRequest("algorithm.%s: local_dir %.256q is not an absolute path without \"..\"", field, ch.LocalDir)
		}
		if _, _, err := place(ch.Remote.OBS.URL); err != nil {
			return err
		}
		seen[ch.Name] = true
		if ch.LocalDir == "" {
			ch.LocalDir = fmt.Sprintf("%s/%s/%s_%d", mount, field, ch.Name, i)
		}
	}
	return nil
}

// local tells whether p is a path that a container could have.
func local(p string) bool {
	return strings.HasPrefix(p, "/") && path.Clean(p) == strings.TrimSuffix(p, "/") && !strings.Contains(p, "\x00")
}

// place splits "obs://bucket/key" or "/bucket/key".
func place(url string) (bucket, key string, err error) {
	rest, ok := strings.CutPrefix(url, "obs://")
	if !ok {
		rest, ok = strings.CutPrefix(url, "/")
	}
	bucket, key, _ = strings.Cut(rest, "/")
	if !ok || bucket == "" {
		return "", "", badRequest("%.256q is not a place in OBS: /bucket/path/ or obs://bucket/path/", url)
	}
	return bucket, key, nil
}
