package slurm

import (
	"strings"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
)

func pending(reason string) adapters.Native {
	return adapters.Native{State: adapters.Pending, Reason: reason}
}

func ended(o pcm.Outcome, reason string) adapters.Native {
	return adapters.Native{State: adapters.Ended, Outcome: o, Reason: reason}
}

// states are Slurm's, as squeue and slurmrestd call them. An attempt that was
// ended by anybody but us is its seller's, and tried elsewhere.
var states = adapters.States{
	"PENDING":       pending(""),
	"CONFIGURING":   pending("its node is being made ready"),
	"POWER_UP_NODE": pending("its node is being switched on"),
	"REQUEUE_FED":   pending("another cluster of the federation is to run it"),
	"RESV_DEL_HOLD": pending("its reservation is gone: an administrator must release it"),
	"REQUEUE_HOLD":  ended(pcm.OutcomeSeller, "Slurm holds it after a requeue"),
	"REQUEUED":      ended(pcm.OutcomeSeller, "Slurm put it back into its queue"),
	"SPECIAL_EXIT":  ended(pcm.OutcomeSeller, "Slurm holds it after a special exit"),
	"RUNNING":       {State: adapters.Running},
	"COMPLETING":    {State: adapters.Running},
	"STAGE_OUT":     {State: adapters.Running},
	"SIGNALING":     {State: adapters.Running},
	"RESIZING":      {State: adapters.Running},
	"EXPEDITING":    {State: adapters.Running},
	"UPDATE_DB":     {State: adapters.Running},
	"SUSPENDED":     {State: adapters.Suspended, Reason: "suspended at its Slurm"},
	"STOPPED":       {State: adapters.Suspended, Reason: "stopped by a signal at its Slurm"},
	"COMPLETED":     ended(pcm.OutcomeOK, ""),
	"FAILED":        ended(pcm.OutcomeFailed, ""),
	"CANCELLED":     ended(pcm.OutcomeSeller, "cancelled at its Slurm by somebody else than PCM"),
	"TIMEOUT":       ended(pcm.OutcomeTimeLimit, "Slurm ended it at its time limit"),
	"DEADLINE":      ended(pcm.OutcomeTimeLimit, "Slurm ended it at its deadline"),
	"OUT_OF_MEMORY": ended(pcm.OutcomeMemory, "used more than its memory"),
	"NODE_FAIL":     ended(pcm.OutcomeSeller, "its node failed"),
	"BOOT_FAIL":     ended(pcm.OutcomeSeller, "its node did not boot"),
	"LAUNCH_FAILED": ended(pcm.OutcomeSeller, "Slurm could not launch it on its node"),
	"RECONFIG_FAIL": ended(pcm.OutcomeSeller, "its node could not be configured"),
	"PREEMPTED":     ended(pcm.OutcomeSeller, "preempted by a job of higher priority"),
	"REVOKED":       ended(pcm.OutcomeSeller, "Slurm revoked it: another cluster of the federation ran it"),
}

// reasons are why a job waits, as far as they need words; others are shown as they are.
var reasons = map[string]string{
	"None":                            "Slurm has yet to look at it",
	"Priority":                        "others in Slurm's queue come first",
	"Resources":                       "waits until enough of the cluster is free",
	"Dependency":                      "waits for another job",
	"JobArrayTaskLimit":               "as many tasks of its array run as may at once",
	"BeginTime":                       "Slurm starts it later",
	"Licenses":                        "waits for a licence",
	"PartitionDown":                   "its partition is down",
	"PartitionInactive":               "its partition is inactive",
	"PartitionNodeLimit":              "it asks for more nodes than its partition gives",
	"PartitionTimeLimit":              "it asks for more time than its partition gives",
	"PartitionConfig":                 "its partition does not allow it",
	"Reservation":                     "waits for its reservation",
	"ReqNodeNotAvail":                 "a node that it needs is not available",
	"NodeDown":                        "a node that it needs is down",
	"BadConstraints":                  "no node meets what it asks for",
	"JobHeldAdmin":                    "an administrator holds it",
	"JobHeldUser":                     "the user holds it",
	"JobLaunchFailure":                "Slurm could not launch it",
	"Prolog":                          "the site's prolog runs",
	"Cleaning":                        "its last run is being cleaned up",
	"InvalidAccount":                  "Slurm does not accept its account",
	"InvalidQOS":                      "Slurm does not accept its QOS",
	"AccountNotAllowed":               "its account may not use the partition",
	"QOSNotAllowed":                   "its QOS may not use the partition",
	"AssociationJobLimit":             "the account's limit of jobs is reached",
	"AssociationResourceLimit":        "the account's limit of resources is reached",
	"AssociationTimeLimit":            "the account's time is used up",
	"AssocGrpCpuLimit":                "the account's limit of cores is reached",
	"AssocMaxJobsLimit":               "the account's limit of jobs is reached",
	"QOSMaxCpuPerUserLimit":           "the QOS's limit of cores for each user is reached",
	"QOSMaxJobsPerUserLimit":          "the QOS's limit of jobs for each user is reached",
	"QOSGrpCpuLimit":                  "the QOS's limit of cores is reached",
	"QOSJobLimit":                     "the QOS's limit of jobs is reached",
	"QOSResourceLimit":                "the QOS's limit of resources is reached",
	"QOSTimeLimit":                    "the QOS's time is used up",
	"MaxMemPerLimit":                  "it asks for more memory than Slurm allows",
	"launch_failed_requeued_held":     "Slurm could not launch it, and holds it",
	"job_requeued_in_held_state":      "Slurm holds it after a requeue",
	"Nodes_required_for_job_are_DOWN": "nodes that it needs are down",
}

// never are reasons that no waiting cures: the attempt is better tried elsewhere.
var never = map[string]bool{
	"BadConstraints": true, "InvalidAccount": true, "InvalidQOS": true, "AccountNotAllowed": true, "QOSNotAllowed": true,
	"PartitionTimeLimit": true, "PartitionNodeLimit": true, "JobLaunchFailure": true, "launch_failed_requeued_held": true,
	"MaxMemPerLimit": true,
}

// why explains why a job waits, with Slurm's own word.
func why(reason string) string {
	reason = strings.Trim(strings.TrimSpace(reason), "()")
	if reason == "" || reason == "(null)" {
		return ""
	}
	word, _, _ := strings.Cut(reason, ",")
	if text, ok := reasons[word]; ok {
		return text + " (" + reason + ")"
	}
	return "waits in Slurm's queue (" + reason + ")"
}
