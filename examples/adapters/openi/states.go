package main

// states is what the back end's words mean.
var states = map[string]State{
	"10": State{
		State:  "pending",
		Reason: "the platform prepares the job",
	},
	"20": State{
		State:  "pending",
		Reason: "the job waits for resources",
	},
	"30": State{
		State: "running",
	},
	"35": State{
		State:  "running",
		Reason: "the job is being stopped",
	},
	"40": State{
		State:   "ended",
		Outcome: "stopped",
	},
	"50": State{
		State:   "ended",
		Outcome: "ok",
	},
	"60": State{
		State:   "ended",
		Outcome: "failed",
	},
	"60 OOMKilled": State{
		State:   "ended",
		Outcome: "memory",
	},
}
