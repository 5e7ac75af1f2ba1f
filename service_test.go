package pcm

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// Every fault of a service is found, and named by its field.
func TestServiceFaults(t *testing.T) {
	check := func(h HealthCheck) *Service { return &Service{Port: 80, Health: &h} }
	for _, c := range []struct {
		name  string
		step  Step
		field string
		says  string
	}{
		{"good", Step{Service: &Service{Port: 80}}, "", ""},
		{"good check", Step{Service: check(HealthCheck{HTTP: "/ok?deep=1", Interval: "1s", Timeout: "1m", StartPeriod: "1h", Failures: 100})}, "", ""},
		{"no port", Step{Service: &Service{}}, ".service.port", "0 is not a port"},
		{"port beyond", Step{Service: &Service{Port: 65536}}, ".service.port", "65536"},
		{"policy", Step{Service: &Service{Port: 80, Restart: "often"}}, ".service.restart", `"often"`},
		{"scale beyond", Step{Count: 2, Service: &Service{Port: 80, Scale: 3}}, ".service.scale", "1 to the step's count, which is 2"},
		{"scale below", Step{Service: &Service{Port: 80, Scale: -1}}, ".service.scale", "-1"},
		{"retries", Step{Retries: 1, Service: &Service{Port: 80}}, ".retries", "service.restart"},
		{"no check", Step{Service: check(HealthCheck{})}, ".service.health", "one of http, tcp and command"},
		{"two checks", Step{Service: check(HealthCheck{TCP: true, HTTP: "/"})}, ".service.health", "one of"},
		{"no path", Step{Service: check(HealthCheck{HTTP: "http://x"})}, ".service.health.http", "not a path"},
		{"header in path", Step{Service: check(HealthCheck{HTTP: "/ HTTP/1.1\r\nX: y"})}, ".service.health.http", "not a path"},
		{"NUL in command", Step{Service: check(HealthCheck{Command: []string{"a", "b\x00"}})}, ".service.health.command[1]", "NUL"},
		{"long command", Step{Service: check(HealthCheck{Command: []string{strings.Repeat("x", 9<<10)}})}, ".service.health.command", "too many"},
		{"too often", Step{Service: check(HealthCheck{TCP: true, Interval: "10ms"})}, ".service.health.interval", "1s to 1h"},
		{"no time", Step{Service: check(HealthCheck{TCP: true, Timeout: "soon"})}, ".service.health.timeout", `"soon"`},
		{"too patient", Step{Service: check(HealthCheck{TCP: true, StartPeriod: "2h"})}, ".service.health.start_period", "2h"},
		{"too many failures", Step{Service: check(HealthCheck{TCP: true, Failures: 101})}, ".service.health.failures", "101"},
	} {
		c.step.Command = []string{"true"}
		s := Spec{Steps: []Step{c.step}}
		var faults []string
		for _, err := range s.Normalize() {
			faults = append(faults, err.Error())
		}
		if c.field == "" {
			if len(faults) > 0 {
				t.Errorf("%s: %v", c.name, faults)
			}
			continue
		}
		if !slices.ContainsFunc(faults, func(f string) bool {
			return strings.HasPrefix(f, "steps[0]"+c.field+": ") && strings.Contains(f, c.says)
		}) {
			t.Errorf("%s: %v, want %s with %q", c.name, faults, c.field, c.says)
		}
	}
	module := Spec{Steps: []Step{{Module: "m.wasm", Service: &Service{Port: 80}}}}
	if len(module.Normalize()) == 0 {
		t.Error("a module was taken as a service")
	}
	needs := Spec{Steps: []Step{{Name: "web", Command: []string{"true"}, Service: &Service{Port: 80}}, {Command: []string{"true"}, Needs: []string{"web"}}}}
	if f := needs.Normalize(); len(f) != 1 || !strings.Contains(f[0].Error(), "never complete") {
		t.Errorf("a step that needs a service: %v", f)
	}
}

// What a service wants, how long it is bought for, and what the ledger knows of it.
func TestServiceStep(t *testing.T) {
	st := Step{Count: 3, Command: []string{"true"}, Service: &Service{Port: 80, Health: &HealthCheck{Command: []string{"check"}}}}
	if w := st.Wants(); !slices.Contains(w, FeatureService) || !slices.Contains(w, FeatureExec) {
		t.Errorf("wants %v", w)
	}
	if o := st.Outline(); o != (Shape{Count: 3, Service: true, Scale: 3}) {
		t.Errorf("outline %+v", o)
	}
	st.Service.Scale = 2
	if o := st.Outline(); o.Scale != 2 {
		t.Errorf("outline %+v", o)
	}
	if st.Limit() != 24*time.Hour {
		t.Errorf("bought for %s", st.Limit())
	}
	if st.TimeLimit = "2h"; st.Limit() != 2*time.Hour {
		t.Errorf("bought for %s", st.Limit())
	}
	h := HealthCheck{}
	if h.Every() != 10*time.Second || h.Within() != 5*time.Second || h.Grace() != 30*time.Second || h.Most() != 3 {
		t.Errorf("defaults %s %s %s %d", h.Every(), h.Within(), h.Grace(), h.Most())
	}
}
