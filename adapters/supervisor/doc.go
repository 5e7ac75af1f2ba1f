// Package supervisor is the process that outlives the daemon: it runs attempts
// on this machine, holds each one's lease and time limit on the boot clock, and
// ends the attempt then, whether the daemon is alive or not.
//
// There is one supervisor for each data folder. It serves a unix socket in that
// folder; the daemon's adapters reach it through a [Client], which starts it
// when none answers. What a task is and how it is kept in is the business of
// its [Runner]s: this package knows folders, leases, caps and the wire.
//
// On disk, below the folder:
//
//	supervisor.lock    held by the one that serves
//	supervisor.sock    the socket
//	supervisor.log     bounded
//	tasks/KEY/         one folder for each attempt that was not removed
//	  task.cbor        what was asked
//	  work/            the task's working folder
//	  stdout, stderr   absent while empty
//	  status.cbor      how it ended; absent before
//
// What is not promised: a supervisor that is itself stopped (SIGSTOP) or starved
// ends nothing until it runs again, and then at once.
package supervisor
