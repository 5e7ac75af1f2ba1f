package plugin

import (
	"context"
	"fmt"
	"syscall"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/plugin/pluginpb"
	"github.com/jointcloud/pcm/adapters/supervisor"
)

// attempt is one Run.
type attempt struct {
	*supervisor.Run
	r     *Runner
	h     *host
	track *track
	begun bool // Started was called
	asked bool // to end
	said  news // last reported
}

const (
	minWait = 200 * time.Millisecond
	maxWait = 10 * time.Second
)

func seller(reason string) supervisor.Exit {
	return supervisor.Exit{Outcome: pcm.OutcomeSeller, Code: 128 + int(syscall.SIGKILL), Reason: reason}
}

func stopped() supervisor.Exit {
	return supervisor.Exit{Outcome: pcm.OutcomeStopped, Code: 128 + int(syscall.SIGTERM), Reason: "stopped before it ran"}
}

// final tells whether an error of Start is the plug-in's last word.
func final(err error) bool {
	switch pcm.ErrorCode(err) {
	case pcm.Invalid, pcm.Refused, pcm.Forbidden, pcm.TooLarge, pcm.Internal:
		return true
	}
	return false
}

// start hands the attempt to the plug-in. What it had taken already is not started twice.
func (a *attempt) start(ctx context.Context) (supervisor.Exit, bool) {
	if a.Again && wasTaken(a.Run) {
		return supervisor.Exit{}, true
	}
	req, err := a.request()
	if err != nil {
		return seller("can't hand its files to the plug-in: " + err.Error()), false
	}
	given := a.Again
	for wait := minWait; ; wait = min(2*wait, maxWait) {
		l, why, changed := a.h.use()
		if l != nil {
			req.Again = given
			given = true
			if _, err = call[pluginpb.StartRequest, pluginpb.StartResponse](ctx, l, "Start", startCall, req); err == nil {
				if err := noteTaken(a.Run); err != nil {
					a.r.log.Warn("can't note that a plug-in has taken an attempt", "attempt", req.Key, "err", err)
				}
				return supervisor.Exit{}, true
			}
			if a.track.end() != nil { // the answer was lost, and it is over already
				return supervisor.Exit{}, true
			}
			if final(err) && ctx.Err() == nil {
				return seller(err.Error()), false
			}
			why = err.Error()
		}
		a.Report(adapters.Pending, "", "plug-in "+a.r.cfg.Name+" can't take it yet: "+why)
		select {
		case <-ctx.Done():
			if given { // the last request may have arrived all the same
				return a.kill(ctx, [2]int64{}), false
			}
			return seller("the plug-in did not take it: " + why), false
		case <-a.Stopping:
			if given {
				return a.kill(ctx, [2]int64{}), false
			}
			return stopped(), false
		case <-changed:
			wait = minWait
		case <-time.After(wait):
		}
	}
}

// request is the task in the plug-in's words.
func (a *attempt) request() (*pluginpb.StartRequest, error) {
	t := a.Task
	req := &pluginpb.StartRequest{
		Key: t.Key.String(), Job: string(t.Job), Trade: string(t.Trade), Index: uint32(t.Index), Attempt: uint32(t.Attempt), Fence: t.Fence,
		Count: uint32(t.Count), Pool: a.r.cfg.poolOf(t.Pool), Command: t.Command, Module: t.Module, Image: t.Image, Args: t.Args,
		Env: map[string]string{}, Outputs: t.Outputs, Work: a.Work, Network: t.Network, Port: uint32(t.Port),
		LimitMs: t.Limit.Milliseconds(), OutputCapBytes: int64(t.OutputCap), Batch: uint32(t.Batch), Width: uint32(t.Width),
		Resources: &pluginpb.Resources{CpuMilli: int64(t.Resources.CPU), MemoryBytes: int64(t.Resources.Memory), Gpus: t.Resources.GPU, DiskBytes: int64(t.Resources.Disk)},
	}
	for k, v := range environ(t) {
		req.Env[k] = v
	}
	for _, in := range t.Inputs {
		req.Inputs = append(req.Inputs, &pluginpb.Input{Path: in.Path, Target: in.Target})
	}
	if a.r.f.apart {
		return req, a.r.f.stage(req)
	}
	return req, nil
}

// environ is a task's environment but for its home and path, which are the back end's.
func environ(t adapters.Task) map[string]string {
	all := map[string]string{}
	for _, kv := range supervisor.Environ(t, "", "") {
		for i := range kv {
			if kv[i] == '=' {
				if kv[:i] != "HOME" && kv[:i] != "PATH" || t.Env[kv[:i]] != "" {
					all[kv[:i]] = kv[i+1:]
				}
				break
			}
		}
	}
	return all
}

// attend follows the attempt to its end.
func (a *attempt) attend(ctx context.Context) supervisor.Exit {
	reading, endReading := context.WithCancel(ctx)
	logs := newReader(a)
	go logs.run(reading)
	defer func() { endReading(); <-logs.done }()
	for {
		last, missing := a.track.now()
		if last != nil {
			a.report(*last)
			if last.state != adapters.Pending || a.begun { // nothing is read before it is told that it runs
				logs.hint(last.sizes)
			}
			if over := a.track.end(); over != nil {
				return a.finish(ctx, *over, logs)
			}
		}
		if missing {
			if lost, why := a.isLost(ctx); lost {
				return seller(why)
			}
		}
		select {
		case <-a.track.poke:
		case <-a.Stopping:
			a.asked = true
			go a.order(ctx, false)
		case <-ctx.Done():
			endReading()
			<-logs.done
			return a.kill(ctx, logs.at)
		}
	}
}

// report tells of a change.
func (a *attempt) report(n news) {
	if n.cpuMS > 0 || n.memory > 0 {
		a.Used(n.cpuMS, n.memory)
	}
	if n.state == a.said.state && n.native == a.said.native && n.reason == a.said.reason {
		return
	}
	a.said = n
	switch n.state {
	case adapters.Running, adapters.Ended:
		ran := n.state == adapters.Running || n.outcome == pcm.OutcomeOK || n.outcome == pcm.OutcomeFailed && n.code != 127 || n.wall > 0
		if n.state == adapters.Running || ran && !a.begun { // so short that nobody saw it
			a.Report(adapters.Running, n.native, n.reason)
		}
		a.begun = a.begun || ran
	default:
		a.Report(n.state, n.native, n.reason)
	}
}

// order tells the plug-in to end the attempt, until that was heard.
func (a *attempt) order(ctx context.Context, force bool) {
	for wait := minWait; ctx.Err() == nil && a.track.end() == nil; wait = min(2*wait, maxWait) {
		l, _, changed := a.h.use()
		if l != nil {
			_, err := call[pluginpb.StopRequest, pluginpb.StopResponse](ctx, l, "Stop", shortCall, &pluginpb.StopRequest{Key: a.Key.String(), Force: force})
			if err == nil && !force {
				return
			}
			if err != nil {
				a.r.log.Warn("a plug-in does not take the order to end an attempt", "plugin", a.r.cfg.Name, "attempt", a.Key.String(), "force", force, "err", err)
			}
		}
		select {
		case <-time.After(wait):
		case <-changed:
		case <-ctx.Done():
		}
	}
}

// kill ends the attempt for good. What the plug-in doesn't end keeps its capacity
// out of the pool, and goes on being told to end. read is how much of its streams was.
func (a *attempt) kill(ctx context.Context, read [2]int64) supervisor.Exit {
	limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), a.r.cfg.Times.Kill)
	defer cancel()
	go a.order(limit, true)
	look := minWait
	for {
		if over := a.track.end(); over != nil {
			logs := newReader(a)
			logs.at = read
			logs.run(limit) // what it still said
			exit := over.exit()
			if exit.Outcome == pcm.OutcomeOK || !a.begun {
				a.report(*over)
			}
			return exit
		}
		select {
		case <-a.track.poke:
		case <-time.After(look):
			// What the plug-in never told of it may not have. Should its start still be
			// on the way, nobody follows it, and it is ended for that.
			if last, missing := a.track.now(); last == nil || missing {
				if lost, _ := a.isLost(limit); lost {
					return stopped()
				}
			}
			look = min(2*look, time.Second)
		case <-limit.Done():
			why := fmt.Sprintf("the plug-in did not end it within %s of a hard stop: it may still run", a.r.cfg.Times.Kill)
			a.r.log.Error("A PLUG-IN DOES NOT END AN ATTEMPT: its capacity is kept out of the pool", "plugin", a.r.cfg.Name, "attempt", a.Key.String())
			if err := a.r.held.add(a.Key.String(), holding{a.Pool, a.Resources}); err != nil {
				a.r.log.Error("can't keep it out", "attempt", a.Key.String(), "err", err)
			}
			return seller(why)
		}
	}
}

// isLost asks the plug-in whether it knows the attempt, which a snapshot lacked.
func (a *attempt) isLost(ctx context.Context) (bool, string) {
	l, _, _ := a.h.use()
	if l == nil {
		return false, "" // there will be another snapshot
	}
	key := a.Key.String()
	after := key[:len(key)-1] // what sorts before it
	for range maxPages {
		res, err := call[pluginpb.ListRequest, pluginpb.ListResponse](ctx, l, "List", shortCall, &pluginpb.ListRequest{After: after})
		if err != nil {
			return false, ""
		}
		for _, st := range res.Statuses {
			if st.Key == key {
				a.h.hear(res.Statuses, a.h.nowView())
				return false, ""
			}
			if st.Key > key || st.Key <= after { // past it, or not sorted
				res.More = false
			}
			after = st.Key
		}
		if !res.More || len(res.Statuses) == 0 {
			break
		}
	}
	return true, "the plug-in does not know it any more: it was lost at the back end, or with the plug-in's process"
}

const maxPages = 1000

func (h *host) nowView() int { h.mu.Lock(); defer h.mu.Unlock(); return h.view }

// finish collects what the attempt left.
func (a *attempt) finish(ctx context.Context, over news, logs *reader) supervisor.Exit {
	exit := over.exit()
	if over.outcome == pcm.OutcomeStopped && !a.asked && ctx.Err() == nil {
		exit.Outcome, exit.Reason = pcm.OutcomeSeller, "the plug-in says that it was stopped, which nobody here has asked for"
	}
	if why := logs.drain(ctx); why != "" && ctx.Err() == nil {
		if exit.Outcome == pcm.OutcomeOK {
			exit.Outcome, exit.Reason = pcm.OutcomeSeller, why
		}
		return exit
	}
	if len(a.Outputs) == 0 {
		return exit
	}
	for wait := minWait; ; wait = min(2*wait, maxWait) {
		l, why, changed := a.h.use()
		if l != nil {
			_, err := call[pluginpb.OutputsRequest, pluginpb.OutputsResponse](ctx, l, "Outputs", outputsCall, &pluginpb.OutputsRequest{Key: a.Key.String()})
			if err == nil && a.r.f.apart {
				err = a.r.f.fetch(a.Key.String(), a.Work, a.Outputs, int64(a.OutputCap))
			}
			if err == nil {
				return exit
			}
			why = err.Error()
			if final(err) || pcm.ErrorCode(err) == pcm.NotFound {
				if exit.Outcome == pcm.OutcomeOK {
					exit.Outcome, exit.Reason = pcm.OutcomeSeller, "its outputs can't be had: "+why
				}
				return exit
			}
		}
		select {
		case <-changed:
			wait = minWait
		case <-time.After(wait):
		case <-a.Stopping: // it has ended
		case <-ctx.Done():
			if exit.Outcome == pcm.OutcomeOK {
				exit.Outcome, exit.Reason = pcm.OutcomeSeller, "its outputs could not be had in time: "+why
			}
			return exit
		}
	}
}

// exit is the end as the supervisor takes it.
func (n news) exit() supervisor.Exit {
	return supervisor.Exit{Outcome: n.outcome, Code: n.code, Reason: n.reason, Native: n.native, CPUMS: n.cpuMS, Memory: n.memory, Wall: n.wall}
}
