package main

// The parts that a description is made of; see 'pcm adapter schema' for what they mean.

// Login says how requests are authenticated. Token, Password and their like name secrets.
type Login struct {
	Kind                                                    string
	Token, Password, Key, AccessKey, SecretKey              string
	Session, Secret, In, As, Service                        string
	Username, Region, URL, ClientID, Domain, Project, AppID Value
	Scopes                                                  []string
	Request                                                 *Request
	Find, Expires                                           Value
}

// Limits bound what is asked; times are in milliseconds.
type Limits struct {
	Rate                   float64
	Burst, Tries, MaxJobs  int
	Timeout, Poll, Refresh int64
}

// Request is one HTTP request.
type Request struct {
	Operation      string
	Method, Server string
	Answer         string
	Path, Body     Value
	Params         map[string]Value // in Path already
	Query, Headers map[string]Value
	Form           map[string]Value
	Repeat         *bool
}

// Call is a request and what its answer means.
type Call struct {
	Request                Request
	OK, Missing            []int
	Failed, Absent, Reason Value
}

// Paging says how a list goes on.
type Paging struct {
	Kind, Param, Size, In string
	Limit, First          int
	Marker, Total         Value
}

// List is a paged call.
type List struct {
	Call
	Paging *Paging
	Items  Value
}

// More is a call by name.
type More struct {
	Name string
	Call
	Find Value
}

// Pools are what there is.
type Pools struct {
	List  *List
	Fixed []any
	More  []More
	Where Value
	Pool  Pool
}

// Pool maps an item to a pool.
type Pool struct {
	ID, Class, CPU, Memory, Disk, GPU, Slots, MaxTime Value
	Labels, Accelerator                               map[string]Value
	Software                                          []Value
}

// Let names a value.
type Let struct {
	Name  string
	Value Value
}

// Step is a call before create.
type Step struct {
	Name string
	Call
	Find Value
	Undo *Call
}

// Create makes a job.
type Create struct {
	Before []Step
	Call
	ID     Value
	Exists []int
	Full   Value
}

// Find looks for a job.
type Find struct {
	List      *List
	Where, ID Value
}

// Watch learns how jobs stand.
type Watch struct {
	List   *List
	One    *Call
	Job    Value
	Status Status
}

// Status is what a job's item says.
type Status struct {
	ID, State, Reason, ExitCode, Seconds, CPU, Memory Value
}

// Log is where a stream is read.
type Log struct {
	Stream string
	Call
	Text   Value
	Follow string
	Next   Value
	Object Value
}

// Data is how files come and go.
type Data struct {
	Store, Pack, AccessKey, SecretKey, Scheme string
	Endpoint, Bucket, Region, Prefix          Value
	Upload, Download                          *Transfer
	Discard                                   *Call
}

// Transfer asks for a URL.
type Transfer struct {
	Call
	URL     Value
	Method  string
	Headers map[string]Value
	Give    map[string]Value
	Done    *Call
}

// Setting is one of the site's.
type Setting struct {
	About    string
	Required bool
	Default  string
	Example  string
	Pattern  string
}

// Secret is one of the site's.
type Secret struct {
	About    string
	Optional bool
}

// Described is all of it.
type Described struct {
	Settings                            map[string]Setting
	Secrets                             map[string]Secret
	Servers                             map[string]Value
	Login                               Login
	Limits                              Limits
	Features                            []string
	Sandbox                             string
	Pools                               Pools
	Let                                 []Let
	Create                              Create
	Find                                Find
	Watch                               Watch
	States                              map[string]State
	Logs                                []Log
	Stop, Kill, Suspend, Resume, Delete *Call
	Data                                *Data
}

func yes(b bool) *bool { return &b }
