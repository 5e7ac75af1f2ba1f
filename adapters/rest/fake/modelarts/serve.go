package modelarts

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
)

// apiError is a refusal as the API has it.
type apiError struct {
	status        int
	code, message string
}

func (e *apiError) Error() string { return e.code + ": " + e.message }

func badRequest(format string, args ...any) error {
	return &apiError{400, "ModelArts.50004000", "Bad request. " + fmt.Sprintf(format, args...)}
}

func noJob(id string) error {
	return &apiError{404, "ModelArts.0102", "The resource does not exist: training job " + id}
}

// handler answers a call with a status and a value, nil for no body.
type handler func(w http.ResponseWriter, r *http.Request, body []byte) (int, any, error)

func (c *Cloud) serve(w http.ResponseWriter, r *http.Request) {
	id := strings.ReplaceAll(newID(), "-", "")
	w.Header().Set("X-Request-Id", id)
	w.Header().Set("Content-Type", "application/json")
	code, v, err := c.call(w, r)
	var known *apiError
	switch {
	case errors.As(err, &known):
		out := map[string]string{"error_code": known.code, "error_msg": known.message}
		if strings.HasPrefix(known.code, "APIGW.") {
			out["request_id"] = id
		}
		code, v = known.status, out
	case err != nil:
		code, v = 500, map[string]string{"error_code": "ModelArts.50005000", "error_msg": "internal error: " + err.Error()}
	}
	w.WriteHeader(code)
	if v != nil {
		_ = json.NewEncoder(w).Encode(v) // who has gone doesn't read it
	}
}

func (c *Cloud) call(w http.ResponseWriter, r *http.Request) (int, any, error) {
	if wait := c.throttled(); wait {
		return 0, nil, &apiError{429, "APIGW.0308", fmt.Sprintf("The throttling threshold has been reached: policy user over ratelimit,limit:%d,time:1 second", c.o.Rate)}
	}
	body, err := c.authenticate(r)
	if err != nil {
		return 0, nil, err
	}
	p := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	if len(p) < 3 || p[0] != "v2" {
		return 0, nil, &apiError{404, "APIGW.0101", "The API does not exist or has not been published in the environment"}
	}
	if p[1] != c.o.Project {
		return 0, nil, &apiError{403, "ModelArts.0003", "No permission for project " + p[1]}
	}
	h := c.route(r.Method, p[2:])
	if h == nil {
		return 0, nil, &apiError{404, "APIGW.0101", "The API does not exist or has not been published in the environment"}
	}
	return h(w, r, body)
}

// route finds who answers; p is the path below the project.
func (c *Cloud) route(method string, p []string) handler {
	switch method + " " + p[0] + fmt.Sprintf(" %d", len(p)) {
	case "POST training-jobs 1":
		return c.serveCreate
	case "POST training-job-searches 1":
		return c.serveSearch
	case "GET training-job-flavors 1":
		return c.serveFlavors
	case "GET training-job-engines 1":
		return c.serveEngines
	case "GET training-quotas 1":
		return c.serveQuotas
	case "GET training-jobs 2":
		return c.of(p[1], c.serveShow)
	case "PUT training-jobs 2":
		return c.of(p[1], c.serveDescribe)
	case "DELETE training-jobs 2":
		return c.of(p[1], c.serveDelete)
	case "POST training-jobs 3":
		if p[2] == "actions" {
			return c.of(p[1], c.serveAction)
		}
	case "GET training-jobs 3":
		if p[2] == "events" {
			return c.of(p[1], c.serveEvents)
		}
	case "GET training-jobs 6":
		if p[2] == "tasks" && p[4] == "logs" {
			return c.of(p[1], func(j *job, r *http.Request, body []byte) (int, any, error) { return c.serveLog(j, p[3], p[5]) })
		}
	}
	return nil
}

// of finds the job that a call is about. The call is answered with c.mu held.
func (c *Cloud) of(id string, h func(*job, *http.Request, []byte) (int, any, error)) handler {
	return func(_ http.ResponseWriter, r *http.Request, body []byte) (int, any, error) {
		c.mu.Lock()
		defer c.mu.Unlock()
		j := c.jobs[id]
		if j == nil {
			return 0, nil, noJob(id)
		}
		return h(j, r, body)
	}
}

// throttled takes one of the calls of this second; true if there is none left.
func (c *Cloud) throttled() bool {
	if c.o.Rate <= 0 {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.o.Now()
	if c.filled.IsZero() {
		c.tokens = float64(c.o.Rate)
	} else {
		c.tokens = min(float64(c.o.Rate), c.tokens+now.Sub(c.filled).Seconds()*float64(c.o.Rate))
	}
	c.filled = now
	if c.tokens < 1 {
		return true
	}
	c.tokens--
	return false
}
