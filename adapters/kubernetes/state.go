package kubernetes

import (
	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
)

// states is what the words of Jobs, pods and containers mean: phases, reasons of
// waiting and terminated containers, reasons of pods, of conditions and of Jobs.
var states = adapters.States{
	// Not running yet.
	"Pending":                    {State: adapters.Pending, Reason: "waits for a node"},
	"NoPod":                      {State: adapters.Pending, Reason: "its Job has no pod yet: a quota, an admission rule or the width of its array may hold it back"},
	"Suspended":                  {State: adapters.Pending, Reason: "its Job is suspended: somebody else decides when it goes on"},
	"SchedulingGated":            {State: adapters.Pending, Reason: "its pod is held back by a scheduling gate"},
	"Unschedulable":              {State: adapters.Pending, Reason: "no node has room for it now"},
	"SchedulerError":             {State: adapters.Pending, Reason: "the scheduler failed; it tries again"},
	"ContainerCreating":          {State: adapters.Pending, Reason: "its container is being made"},
	"PodInitializing":            {State: adapters.Pending, Reason: "its inputs are being brought"},
	"ErrImagePull":               {State: adapters.Pending, Reason: "its image can't be pulled"},
	"ImagePullBackOff":           {State: adapters.Pending, Reason: "its image can't be pulled"},
	"ErrImageNeverPull":          {State: adapters.Pending, Reason: "its image is not on the node and may not be pulled"},
	"RegistryUnavailable":        {State: adapters.Pending, Reason: "the registry of its image does not answer"},
	"ImageInspectError":          {State: adapters.Pending, Reason: "its image can't be read"},
	"SignatureValidationFailed":  {State: adapters.Pending, Reason: "the signature of its image is not accepted"},
	"InvalidImageName":           {State: adapters.Ended, Outcome: pcm.OutcomeFailed, Reason: "the name of its image is not valid"},
	"CreateContainerConfigError": {State: adapters.Pending, Reason: "its container can't be configured"},
	"CreateContainerError":       {State: adapters.Pending, Reason: "its container can't be made"},
	"CreatePodSandboxError":      {State: adapters.Pending, Reason: "its pod can't be set up"},
	"PreCreateHookError":         {State: adapters.Pending, Reason: "its container can't be made"},
	"PreStartHookError":          {State: adapters.Pending, Reason: "its container can't be started"},
	"RunContainerError":          {State: adapters.Pending, Reason: "its container can't be started"},
	"CrashLoopBackOff":           {State: adapters.Pending, Reason: "its helper fails again and again"},
	"Running":                    {State: adapters.Running},
	"Unknown":                    {State: adapters.Running, Reason: "its node does not answer"},
	"NodeNotReady":               {State: adapters.Running, Reason: "its node does not answer"},
	"Terminating":                {State: adapters.Running, Reason: "it is being ended"},
	"Succeeded":                  {State: adapters.Ended, Outcome: pcm.OutcomeOK},
	"Completed":                  {State: adapters.Ended, Outcome: pcm.OutcomeOK},
	"CompletionsReached":         {State: adapters.Ended, Outcome: pcm.OutcomeOK},
	"SuccessPolicy":              {State: adapters.Ended, Outcome: pcm.OutcomeOK},
	"Error":                      {State: adapters.Ended, Outcome: pcm.OutcomeFailed},
	"ContainerCannotRun":         {State: adapters.Ended, Outcome: pcm.OutcomeFailed, Reason: "its program can't be started"},
	"StartError":                 {State: adapters.Ended, Outcome: pcm.OutcomeFailed, Reason: "its program can't be started"},
	"OOMKilled":                  {State: adapters.Ended, Outcome: pcm.OutcomeMemory, Reason: "ended at its memory limit"},
	"DeadlineExceeded":           {State: adapters.Ended, Outcome: pcm.OutcomeTimeLimit, Reason: "ended at its time limit by the cluster"},
	"Failed":                     {State: adapters.Ended, Outcome: pcm.OutcomeSeller, Reason: "its pod failed"},
	"BackoffLimitExceeded":       {State: adapters.Ended, Outcome: pcm.OutcomeSeller, Reason: "its pod ended without saying how"},
	"FailedIndexes":              {State: adapters.Ended, Outcome: pcm.OutcomeSeller, Reason: "its pod ended without saying how"},
	"MaxFailedIndexesExceeded":   {State: adapters.Ended, Outcome: pcm.OutcomeSeller, Reason: "too many of its array failed"},
	"PodFailurePolicy":           {State: adapters.Ended, Outcome: pcm.OutcomeSeller, Reason: "a rule of the cluster ended its Job"},
	"Evicted":                    {State: adapters.Ended, Outcome: pcm.OutcomeSeller, Reason: "evicted by its node"},
	"TerminationByKubelet":       {State: adapters.Ended, Outcome: pcm.OutcomeSeller, Reason: "ended by its node"},
	"Preempting":                 {State: adapters.Ended, Outcome: pcm.OutcomeSeller, Reason: "gave way to pods of higher priority"},
	"PreemptionByScheduler":      {State: adapters.Ended, Outcome: pcm.OutcomeSeller, Reason: "gave way to pods of higher priority"},
	"EvictionByEvictionAPI":      {State: adapters.Ended, Outcome: pcm.OutcomeSeller, Reason: "evicted: its node is being drained"},
	"DeletionByTaintManager":     {State: adapters.Ended, Outcome: pcm.OutcomeSeller, Reason: "its node was tainted or does not answer"},
	"DeletionByPodGC":            {State: adapters.Ended, Outcome: pcm.OutcomeSeller, Reason: "its node is gone"},
	"NodeLost":                   {State: adapters.Ended, Outcome: pcm.OutcomeSeller, Reason: "its node does not answer"},
	"NodeShutdown":               {State: adapters.Ended, Outcome: pcm.OutcomeSeller, Reason: "its node was shut down"},
	"Shutdown":                   {State: adapters.Ended, Outcome: pcm.OutcomeSeller, Reason: "its node was shut down"},
	"Terminated":                 {State: adapters.Ended, Outcome: pcm.OutcomeSeller, Reason: "its node was shut down"},
	"ContainerStatusUnknown":     {State: adapters.Ended, Outcome: pcm.OutcomeSeller, Reason: "its node does not know how it ended"},
	"UnexpectedAdmissionError":   {State: adapters.Ended, Outcome: pcm.OutcomeSeller, Reason: "its node did not take it"},
	"NodeAffinity":               {State: adapters.Ended, Outcome: pcm.OutcomeSeller, Reason: "its node did not take it"},
	"NodeSelectorMismatching":    {State: adapters.Ended, Outcome: pcm.OutcomeSeller, Reason: "its node did not take it"},
	"OutOfcpu":                   {State: adapters.Ended, Outcome: pcm.OutcomeSeller, Reason: "its node had no CPU left for it"},
	"OutOfmemory":                {State: adapters.Ended, Outcome: pcm.OutcomeSeller, Reason: "its node had no memory left for it"},
	"OutOfpods":                  {State: adapters.Ended, Outcome: pcm.OutcomeSeller, Reason: "its node takes no more pods"},
	"OutOfephemeral-storage":     {State: adapters.Ended, Outcome: pcm.OutcomeSeller, Reason: "its node had no disk left for it"},
	"PodDeleted":                 {State: adapters.Ended, Outcome: pcm.OutcomeSeller, Reason: "somebody deleted its pod"},
	"JobDeleted":                 {State: adapters.Ended, Outcome: pcm.OutcomeSeller, Reason: "somebody deleted its Job"},
	"InputsFailed":               {State: adapters.Ended, Outcome: pcm.OutcomeSeller, Reason: "its inputs could not be brought"},
	"InitContainerFailed":        {State: adapters.Ended, Outcome: pcm.OutcomeSeller, Reason: "the helper that brings its inputs failed"},
}

// isPull tells whether a waiting container lacks its image.
func isPull(word string) bool {
	switch word {
	case "ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "RegistryUnavailable", "ImageInspectError", "SignatureValidationFailed":
		return true
	}
	return false
}

// isBroken tells whether a waiting container has a fault that seldom heals.
func isBroken(word string) bool {
	switch word {
	case "CreateContainerConfigError", "CreateContainerError", "RunContainerError", "PreCreateHookError", "PreStartHookError", "CrashLoopBackOff":
		return true
	}
	return false
}

// kind makes one of words between which a waiting container goes to and fro.
func kind(word string) string {
	switch {
	case isPull(word):
		return "pull"
	case isBroken(word):
		return "broken"
	}
	return word
}
