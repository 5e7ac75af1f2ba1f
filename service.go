package pcm

import (
	"slices"
	"strconv"
	"strings"
	"time"
)

// Service says that the tasks of a step are replicas of something that runs
// until it is stopped and is reached by its port. Each replica is bought for the
// step's time limit; when that is over it is placed anew.
type Service struct {
	Port    int          `json:"port" cbor:"1,keyasint" minimum:"1" maximum:"65535" doc:"TCP port on which each task listens; it learns it from PCM_PORT as well." example:"8080"`
	Restart Restart      `json:"restart,omitempty" cbor:"2,keyasint,omitempty" enum:"always,on-failure,never" doc:"When a replica that ended by itself is run again, after a pause that grows from 1 s to 5 min: always (default), on-failure or never."`
	Scale   int          `json:"scale,omitempty" cbor:"3,keyasint,omitempty" minimum:"0" doc:"How many replicas run at first; default: count, which is the most that 'pcm job scale' can have run."`
	Health  *HealthCheck `json:"health,omitempty" cbor:"4,keyasint,omitempty" doc:"How the seller sees whether a replica is well. One that is not is ended, and restarted as after a failure."`
}

// Restart says when a service's task that ended by itself is run again.
type Restart string

// The values of [Service.Restart].
const (
	RestartAlways    Restart = "always"
	RestartOnFailure Restart = "on-failure"
	RestartNever     Restart = "never"
)

// HealthCheck is a check of a running service: exactly one of HTTP, TCP and Command.
type HealthCheck struct {
	HTTP        string   `json:"http,omitempty" cbor:"1,keyasint,omitempty" doc:"Path that is asked for at the port; an answer with a status from 200 to 399 is good." example:"/healthz"`
	TCP         bool     `json:"tcp,omitempty" cbor:"2,keyasint,omitempty" doc:"Good when the port takes a connection."`
	Command     []string `json:"command,omitempty" cbor:"3,keyasint,omitempty" maxItems:"64" doc:"Command run beside the task; good when it ends with 0. Only on pools that can do exec."`
	Interval    Duration `json:"interval,omitempty" cbor:"4,keyasint,omitempty" doc:"Between two checks; default 10s." example:"10s"`
	Timeout     Duration `json:"timeout,omitempty" cbor:"5,keyasint,omitempty" doc:"For one check; default 5s, at most 1m."`
	Failures    int      `json:"failures,omitempty" cbor:"6,keyasint,omitempty" minimum:"0" maximum:"100" doc:"Bad checks in a row that make a replica unhealthy; default 3."`
	StartPeriod Duration `json:"start_period,omitempty" cbor:"7,keyasint,omitempty" doc:"Time that a replica has to become well: bad checks before the first good one don't count in it; default 30s."`
}

// Bounds and defaults of services.
const (
	DefaultPeriod     = 24 * time.Hour // for which a replica is bought, where the step has no time limit
	MaxServiceTries   = 1_000_000      // attempts of one replica: renewals and restarts
	minHealthInterval = time.Second
	maxHealthTime     = time.Hour
)

// Every is the time between two checks.
func (h HealthCheck) Every() time.Duration { return orLength(h.Interval, 10*time.Second) }

// Within is the time that one check may take.
func (h HealthCheck) Within() time.Duration { return orLength(h.Timeout, 5*time.Second) }

// Grace is the time that a replica has to become well.
func (h HealthCheck) Grace() time.Duration { return orLength(h.StartPeriod, 30*time.Second) }

// Most is how many bad checks in a row make a replica unhealthy.
func (h HealthCheck) Most() int {
	if h.Failures <= 0 {
		return 3
	}
	return h.Failures
}

// orLength reads a duration that was checked before.
func orLength(d Duration, def time.Duration) time.Duration {
	v, err := d.Get(def)
	if err != nil {
		return def
	}
	return v
}

// Initial is how many of count replicas run at first.
func (s Service) Initial(count int) int {
	if s.Scale <= 0 {
		return count
	}
	return s.Scale
}

// normalize fills in defaults and finds faults. bad takes the field within the
// service, like ".port".
func (s *Service) normalize(st *Step, bad func(field, format string, args ...any)) {
	if s.Port < 1 || s.Port > 65535 {
		bad(".service.port", "%d is not a port: 1 to 65535", s.Port)
	}
	if s.Restart == "" {
		s.Restart = RestartAlways
	}
	if !slices.Contains([]Restart{RestartAlways, RestartOnFailure, RestartNever}, s.Restart) {
		bad(".service.restart", "%q is not always, on-failure or never", s.Restart)
	}
	if s.Scale < 0 || s.Scale > st.Count {
		bad(".service.scale", "%d is out of range: 1 to the step's count, which is %d", s.Scale, st.Count)
	}
	if st.Retries != 0 {
		bad(".retries", "a service is run again as service.restart says: it has no retries")
	}
	if st.Module != "" {
		bad(".module", "a WebAssembly module can't listen on a port: a service has a command")
	}
	if s.Health != nil {
		s.Health.normalize(bad)
	}
}

func (h *HealthCheck) normalize(bad func(field, format string, args ...any)) {
	kinds := 0
	if h.HTTP != "" {
		kinds++
		if !strings.HasPrefix(h.HTTP, "/") || len(h.HTTP) > 1024 || !Printable(h.HTTP) || strings.ContainsRune(h.HTTP, ' ') {
			bad(".service.health.http", "%.80q is not a path like /healthz", h.HTTP)
		}
	}
	if h.TCP {
		kinds++
	}
	if len(h.Command) > 0 {
		kinds++
		size := 0
		for i, w := range h.Command {
			if size += len(w); !plainText(w) || i == 0 && w == "" {
				bad(".service.health.command["+strconv.Itoa(i)+"]", "%.80q holds a NUL character, isn't UTF-8 or is empty", w)
			}
		}
		if len(h.Command) > 64 || size > 8<<10 {
			bad(".service.health.command", "%d words of %d bytes are too many: at most 64 of 8 KiB together", len(h.Command), size)
		}
	}
	if kinds != 1 {
		bad(".service.health", "a check is one of http, tcp and command")
	}
	if h.Failures < 0 || h.Failures > 100 {
		bad(".service.health.failures", "%d is out of range: 1 to 100", h.Failures)
	}
	for _, d := range []struct {
		field  string
		value  Duration
		lo, hi time.Duration
	}{
		{"interval", h.Interval, minHealthInterval, maxHealthTime},
		{"timeout", h.Timeout, 100 * time.Millisecond, time.Minute},
		{"start_period", h.StartPeriod, time.Millisecond, maxHealthTime},
	} {
		if v, err := d.value.Get(d.lo); err != nil {
			bad(".service.health."+d.field, "%s", err.Error())
		} else if v < d.lo || v > d.hi {
			bad(".service.health."+d.field, "%s is out of range: %s to %s", d.value, d.lo, d.hi)
		}
	}
}
