// Package description is the form in which a back end with a REST API is described,
// so that it needs no code: where it is, how to log in, what it has, and which calls
// create, find, watch, stop and delete a task's job there. It is pure: reading and
// checking descriptions, not following them.
//
// Values in which ${…} may stand are templates, extracting fields are expressions
// (both of package expr). What they may speak of:
//
//	settings  what the site's configuration says, texts by name
//	pool      of the task: id, and native, the item that the back end listed for it
//	task      see [Task]; only where there is one
//	data      where a task's files are, see [Data]
//	id        the back end's own name of the job, as create or find gave it
//	job       what the last watch of the job saw: its item, or the body of its own call
//	item      the element of a list that is looked at
//	body, status, header   of the answer to the call: JSON or text; number; texts by name in lower case
//	more      of pools: what the calls below pools.more gave, by name
//	ours      of a pool: how many of our own jobs it has now
//	offset    of a log: where reading goes on, see [Log]
//	object    a file on its way, see [Transfer]
//	given     of done of a transfer: what give named
//	step      of undo: what the step gave
//	array     of create.many: see [Many]
package description

// Format is the version of the form that this package reads.
const Format = "adapter/1"

// Description is one back end.
type Description struct {
	PCM      string `yaml:"pcm"`                // the form: "adapter/1"
	Name     string `yaml:"name"`               // the adapter's, unless the site gives another
	About    string `yaml:"about"`              // what it is, in a line or more; the first one stands in lists
	Homepage string `yaml:"homepage,omitempty"` // address of what it describes, for people
	OpenAPI  string `yaml:"openapi,omitempty"`  // file beside the description; requests may then name an operation

	Settings map[string]Setting  `yaml:"settings,omitempty"`              // what a site has to say of its account or region, as settings.NAME
	Secrets  map[string]Secret   `yaml:"secrets,omitempty"`               // what a site has to keep elsewhere
	Servers  map[string]Template `yaml:"servers" vars:"settings"`         // base URLs by name; "api" is that of requests which name none
	Login    Login               `yaml:"login,omitempty" vars:"settings"` // how requests are authenticated; default: not at all
	Limits   Limits              `yaml:"limits,omitempty"`                // how much is asked of the back end, and how often

	Features []string          `yaml:"features,omitempty"` // of its pools beside "command": image, network, suspend …
	Sandbox  string            `yaml:"sandbox,omitempty"`  // what keeps tasks in there
	Lacks    map[string]string `yaml:"lacks,omitempty"`    // capabilities that it doesn't have, each with the reason

	Pools  Pools            `yaml:"pools" vars:"settings"`                                       // what the back end has, as pools
	Let    []Let            `yaml:"let,omitempty" vars:"settings,pool,task,data"`                // values computed once for each task, in this order; task.let.NAME
	Create Create           `yaml:"create" vars:"settings,pool,task,data"`                       // makes the job of a task
	Find   Find             `yaml:"find,omitempty" vars:"settings,pool,task"`                    // without it a job whose create was not answered is given up
	Watch  Watch            `yaml:"watch" vars:"settings"`                                       // learns how jobs stand
	States map[string]State `yaml:"states"`                                                      // the back end's words for states, as text
	Logs   []Log            `yaml:"logs,omitempty" vars:"settings,pool,task,data,id,job,offset"` // where what the job prints is read

	Stop    *Call `yaml:"stop,omitempty" vars:"settings,pool,task,id,job"`    // asks the job to end
	Kill    *Call `yaml:"kill,omitempty" vars:"settings,pool,task,id,job"`    // without it: stop, or delete
	Suspend *Call `yaml:"suspend,omitempty" vars:"settings,pool,task,id,job"` // halts the job; with resume: tasks can be suspended
	Resume  *Call `yaml:"resume,omitempty" vars:"settings,pool,task,id,job"`  // lets it go on
	Delete  *Call `yaml:"delete,omitempty" vars:"settings,pool,task,id,job"`  // after the end, when all was fetched

	Data   *Data   `yaml:"data,omitempty" vars:"settings,pool,task"` // how files come to and from the job; without it tasks with inputs or outputs are not taken
	Bridge *Bridge `yaml:"bridge,omitempty"`                         // how the back end's names of things map to ours
}

// Setting is something that a site says in its configuration.
type Setting struct {
	About    string `yaml:"about"`              // what it is, for who has to give it
	Required bool   `yaml:"required,omitempty"` // a site must give it, unless it has a default
	Default  string `yaml:"default,omitempty"`  // its value where the site gives none
	Example  string `yaml:"example,omitempty"`  // a value, shown to who gives none or one that doesn't fit
	Pattern  string `yaml:"pattern,omitempty"`  // RE2, of the whole value
}

// Secret is something that a site keeps elsewhere and refers to. Expressions can't read it.
type Secret struct {
	About    string `yaml:"about"`              // what it is, for who has to give it
	Optional bool   `yaml:"optional,omitempty"` // a site may do without it
}

// Login is how requests are authenticated. Which fields count is a matter of its
// kind; fields that end in Secret, and those so marked, name a secret.
type Login struct {
	Kind string `yaml:"kind"` // none, bearer, basic, api-key, oauth2, keystone, aws, huawei

	Header    string   `yaml:"header,omitempty"`     // bearer: of the token; default Authorization
	Prefix    string   `yaml:"prefix,omitempty"`     // bearer: before the token; default "Bearer " where no header is named
	Token     string   `yaml:"token,omitempty"`      // bearer: secret
	Username  Template `yaml:"username,omitempty"`   // basic, keystone
	Password  string   `yaml:"password,omitempty"`   // basic, keystone: secret
	Key       string   `yaml:"key,omitempty"`        // api-key: secret
	In        string   `yaml:"in,omitempty"`         // api-key: header or query
	As        string   `yaml:"as,omitempty"`         // api-key: name of the header or parameter
	AccessKey string   `yaml:"access_key,omitempty"` // aws, huawei: secret
	SecretKey string   `yaml:"secret_key,omitempty"` // aws, huawei: secret
	Session   string   `yaml:"session,omitempty"`    // aws, huawei: secret; security token
	Region    Template `yaml:"region,omitempty"`     // aws; keystone: of the catalogue
	Service   string   `yaml:"service,omitempty"`    // aws; keystone: type in the catalogue whose endpoint is the server "api"
	URL       Template `yaml:"url,omitempty"`        // oauth2: of tokens; keystone: of the identity API
	ClientID  Template `yaml:"client_id,omitempty"`  // oauth2
	Secret    string   `yaml:"secret,omitempty"`     // oauth2, keystone application credential: secret
	Scopes    []string `yaml:"scopes,omitempty"`     // oauth2
	Domain    Template `yaml:"domain,omitempty"`     // keystone: of user and project
	Project   Template `yaml:"project,omitempty"`    // keystone
	AppID     Template `yaml:"app_id,omitempty"`     // keystone: application credential instead of a user

	// bearer by a call: the token is what the expression finds in the answer.
	Request *Request   `yaml:"request,omitempty" vars:"settings"`           // its body may hold {secret: NAME} in place of a value
	Find    Expression `yaml:"find,omitempty" vars:"body,status,header"`    // bearer by a call: the token in its answer
	Expires Expression `yaml:"expires,omitempty" vars:"body,status,header"` // seconds that it holds
}

// Limits bound what is asked of the back end.
type Limits struct {
	Rate    float64  `yaml:"rate,omitempty"`     // requests a second; default 10
	Burst   int      `yaml:"burst,omitempty"`    // default 20
	Timeout Duration `yaml:"timeout,omitempty"`  // of one call; default 30s
	Tries   int      `yaml:"tries,omitempty"`    // of a call that may be repeated; default 5
	Poll    Duration `yaml:"poll,omitempty"`     // between watches; default 5s
	Refresh Duration `yaml:"refresh,omitempty"`  // between looks at pools; default 1m
	MaxJobs int      `yaml:"max_jobs,omitempty"` // of ours at once; 0: what the pools say
}

// Call is a request and what its answer means.
type Call struct {
	Request Request `yaml:"request"`           // what is sent
	OK      []int   `yaml:"ok,omitempty"`      // statuses of success; default 200 to 299
	Missing []int   `yaml:"missing,omitempty"` // statuses that say that there is no such thing; default 404
	// When the answer says in its body that the call failed, whatever its status.
	Failed Expression `yaml:"failed,omitempty" vars:"body,status,header"`
	Absent Expression `yaml:"absent,omitempty" vars:"body,status,header"` // and when it says there that there is no such thing
	Reason Expression `yaml:"reason,omitempty" vars:"body,status,header"` // the back end's own words of a failure
}

// Request is one HTTP request.
type Request struct {
	Operation string              `yaml:"operation,omitempty"` // of the OpenAPI document, instead of method and path
	Params    map[string]Template `yaml:"params,omitempty"`    // of the operation, in its path
	Method    string              `yaml:"method,omitempty"`    // default GET
	Server    string              `yaml:"server,omitempty"`    // default api
	Path      Template            `yaml:"path,omitempty"`      // relative to the server
	Query     map[string]Template `yaml:"query,omitempty"`     // parameters behind the path; those without a value are left out
	Headers   map[string]Template `yaml:"headers,omitempty"`   // beside those of the log-in; those without a value are left out
	Body      Template            `yaml:"body,omitempty"`      // sent as JSON
	Form      map[string]Template `yaml:"form,omitempty"`      // sent as a form instead
	Answer    string              `yaml:"answer,omitempty"`    // json (default) or text
	// The call may be repeated: default for GET, PUT and DELETE, else not.
	Repeat *bool `yaml:"repeat,omitempty"`
}

// Paging says how a list goes on after its first page. Its kind decides.
type Paging struct {
	Kind   string     `yaml:"kind"`                                            // offset, page, marker, link (a header as RFC 8288 has it) or url
	Param  string     `yaml:"param,omitempty"`                                 // that carries offset, page number or marker
	Size   string     `yaml:"size,omitempty"`                                  // parameter of the page's size
	Limit  int        `yaml:"limit,omitempty"`                                 // the page's size; default 100
	First  int        `yaml:"first,omitempty"`                                 // the first page's number
	In     string     `yaml:"in,omitempty"`                                    // query (default) or body: where the parameters are
	Marker Expression `yaml:"marker,omitempty" vars:"body,status,header,item"` // of the last item; for url: of the next page, nothing at the end
	Total  Expression `yaml:"total,omitempty" vars:"body,status,header"`       // how many there are in all, where that is said
}

// List is a paged call that gives items.
type List struct {
	Call   `yaml:",inline"`
	Paging *Paging    `yaml:"paging,omitempty"`                // how the list goes on; without it the first answer is all
	Items  Expression `yaml:"items" vars:"body,status,header"` // the elements in the answer, as a list
}

// Pools is what the back end has to sell: one for each item of a list, or fixed ones.
type Pools struct {
	List  *List      `yaml:"list,omitempty"`                            // the call that lists them
	Fixed []any      `yaml:"fixed,omitempty"`                           // items that stand here, instead of a list
	More  []More     `yaml:"more,omitempty"`                            // other calls whose answers the pools need, such as quotas: more.NAME
	Where Expression `yaml:"where,omitempty" vars:"settings,item,more"` // which items are pools; default all
	Pool  Pool       `yaml:"pool" vars:"settings,item,more,ours"`       // its id can't speak of ours
}

// More is a call by name.
type More struct {
	Name string `yaml:"name"` // what the answer is called in more
	Call `yaml:",inline"`
	Find Expression `yaml:"find,omitempty" vars:"body,status,header"` // what is kept of the answer; default its body
}

// Pool maps an item to a pool of ours. Amounts are numbers, or texts with units as in specs.
type Pool struct {
	ID          Template            `yaml:"id"`                    // its name, the same for ever; other characters than letters, digits, dots and dashes become dashes
	Class       Template            `yaml:"class,omitempty"`       // the class of resources that it is, as specs ask for them, e.g. cpu.medium
	CPU         Template            `yaml:"cpu"`                   // cores of one task at most: of one slot
	Memory      Template            `yaml:"memory"`                // bytes, or a text with unit
	Disk        Template            `yaml:"disk,omitempty"`        // bytes, or a text with unit
	GPU         Template            `yaml:"gpu,omitempty"`         // accelerators
	Slots       Template            `yaml:"slots,omitempty"`       // how many tasks of that size at once: the pool's capacity is slots times the size; default 1
	MaxTime     Template            `yaml:"max_time,omitempty"`    // seconds, or a text with unit
	Labels      map[string]Template `yaml:"labels,omitempty"`      // facts that specs can ask for, such as region
	Accelerator map[string]Template `yaml:"accelerator,omitempty"` // vendor, model, memory, …, as offers have them
	Software    []Template          `yaml:"software,omitempty"`    // what is installed, each as NAME or NAME=VERSION
}

// Let names a value.
type Let struct {
	Name  string   `yaml:"name"`  // what it is called in task.let
	Value Template `yaml:"value"` // computed once for each task; it may speak of those before it
}

// Create makes the job. It is called once for each attempt: where the answer was
// lost, Find tells whether there is one. The steps before it come after the inputs are
// uploaded; with presigned data before, so that they can make a place for them.
type Create struct {
	Before []Step `yaml:"before,omitempty"` // calls that come first, such as one that makes a data set; task.step.NAME is what they gave
	Call   `yaml:",inline"`
	ID     Expression `yaml:"id" vars:"body,status,header"` // the back end's own name of the job, that all later calls have as id
	// Statuses of an answer that says that there is one with this key already.
	Exists []int `yaml:"exists,omitempty"`
	// Statuses or words by which the back end says that it has no room now: the attempt waits.
	Full Expression `yaml:"full,omitempty" vars:"body,status,header"`
	// One call for the jobs of many tasks; create still makes those of tasks that come alone.
	Many *Many `yaml:"many,omitempty" vars:"array"`
}

// Many makes the jobs of several tasks of one trade by one call: a list of them, or an
// array that the back end numbers. What its request says of task and pool is the
// same for all of them: it can't speak of what each has for itself, such as
// task.name or data. That is what each renders, as array.each. array has
//
//	name    the same for no other array anywhere, 40 characters at most: letters, digits and dashes
//	count   how many tasks there are
//	width   how many may run at once: a request that reads it has the back end keep to that; else no more are made at once
//	each    what Each gave, in order: the task at place i has task.array.index i
//
// What the call has made is told by its answer: an id for each task, or items,
// which say by name or index whose they are. Or it is told by list, which is also asked
// when the answer was lost. What neither tells of is looked for by find, and then
// created by itself; so is every task when the back end refuses the whole call. What
// create's full and exists say of an answer holds for that of this call, too.
type Many struct {
	Most  int      `yaml:"most"` // tasks of one call: 2 to 1000
	Each  Template `yaml:"each"` // what the request says of one task, such as its name and task.command
	Call  `yaml:",inline"`
	Items Expression `yaml:"items,omitempty" vars:"body,status,header"` // what the answer says of each, as a list
	List  *List      `yaml:"list,omitempty"`                            // the call that lists what was made, where the answer doesn't tell
	// Whose an item is: the task's name, as task.name has it …
	Name Expression `yaml:"name,omitempty" vars:"item"`
	// … or its place in the array, from 0.
	Index Expression `yaml:"index,omitempty" vars:"item"`
	// The back end's own name of the job. Without items and list it is computed for each task, from the answer and task.array.index.
	ID      Expression `yaml:"id" vars:"body,status,header,item"`
	Refused Expression `yaml:"refused,omitempty" vars:"item"` // the back end's own words on why it refuses this one, or true; nothing or false if it doesn't
	Full    Expression `yaml:"full,omitempty" vars:"item"`    // when it has no room for this one now, and refuses it for that: the attempt waits
}

// Step is a call before create.
type Step struct {
	Name string `yaml:"name"` // what it is called in task.step
	Call `yaml:",inline"`
	Find Expression `yaml:"find,omitempty" vars:"body,status,header"` // what is kept of the answer; default its body
	Undo *Call      `yaml:"undo,omitempty" vars:"step"`               // after the job's end; step is what it gave
}

// Find looks for the job of an attempt by its key.
type Find struct {
	List  *List      `yaml:"list,omitempty"`              // the call that lists the jobs among which it is; best only those of that name
	Where Expression `yaml:"where,omitempty" vars:"item"` // which item it is
	ID    Expression `yaml:"id,omitempty" vars:"item"`    // the back end's own name of the job
}

// Watch learns how jobs stand: all with one list, or each with a call of its own.
type Watch struct {
	List *List `yaml:"list,omitempty"`          // the call that lists our jobs, or all
	One  *Call `yaml:"one,omitempty" vars:"id"` // asks how one job stands
	// What of the answer of One is the job; default its body.
	Job    Expression `yaml:"job,omitempty" vars:"body,status,header"`
	Status Status     `yaml:"status" vars:"job"` // job is the list's item, or what One gave
}

// Status is what a job's item or body says.
type Status struct {
	ID       Expression `yaml:"id,omitempty"`          // of an item of the list
	State    Expression `yaml:"state"`                 // the back end's word, looked up in States; numbers as text
	Reason   Expression `yaml:"reason,omitempty"`      // the back end's own words on why it stands so
	ExitCode Expression `yaml:"exit_code,omitempty"`   // when it has ended; nothing if not known
	Seconds  Expression `yaml:"seconds,omitempty"`     // how long it ran
	CPU      Expression `yaml:"cpu_seconds,omitempty"` // seconds of CPU that it used
	Memory   Expression `yaml:"memory,omitempty"`      // bytes at most
}

// State is what a word of the back end means.
type State struct {
	State   string `yaml:"state"`             // pending, running, suspended or ended
	Outcome string `yaml:"outcome,omitempty"` // of ended: ok (failed all the same where the exit code is not 0), failed, time_limit, memory, output, stopped, or lost: by the provider's fault
	Reason  string `yaml:"reason,omitempty"`  // what people are told with the word, where Status has no reason
}

// Log is where a stream of the task is read.
type Log struct {
	Stream string `yaml:"stream"` // stdout or stderr; a back end that mixes them has stdout
	Call   `yaml:",inline"`
	Text   Expression `yaml:"text,omitempty" vars:"body,status,header"` // default the whole answer
	// How reading goes on: "whole" (default: each answer is the text from its begin), "offset"
	// (offset is bytes read so far), "marker" (offset is what Next found last) or "tail" (each
	// answer is the end of the text so far, as of a console: what was there too shortly is lost,
	// which stdout then says. A task of task.script is ended when its output is over its cap; and
	// with a store whose scheme is https all that it printed is left there, and none is lost).
	Follow string     `yaml:"follow,omitempty"`
	Next   Expression `yaml:"next,omitempty" vars:"body,status,header"` // of follow: marker, what the next call has as offset
	Object Template   `yaml:"object,omitempty"`                         // instead of a call: an object in the data store
}

// Data is how files come to and from the job. An input is one object, or with pack:
// files one for each file; the outputs are one object, or with pack: files
// all that lie below one name. Templates of create see:
//
//	data.inputs   list of {index, target, folder, key, size, url, dir, dir_url}, and what Transfer gives;
//	              presigned and pack: files have an element for each file, with its own target
//	data.outputs  {key, url, dir, dir_url}, and what Transfer gives
//	data.in_url, data.out_url, data.prefix_url   of the folders that hold all of them
//	data["in"], data.out, data.prefix            their keys; CEL keeps the word in for itself
//
// url and key are of the object: of the file, or of the archive input.tar or
// outputs.tar; dir and dir_url are of the folder that holds it, and end in "/". A tar of
// an input holds its files under the input's target; that of outputs, under their own paths.
type Data struct {
	Store     string   `yaml:"store"`                // s3 (OBS and others speak it) or presigned
	Pack      string   `yaml:"pack,omitempty"`       // files (default: objects by name), or tar: one archive for each input, and one of all outputs
	Endpoint  Template `yaml:"endpoint,omitempty"`   // s3
	Bucket    Template `yaml:"bucket,omitempty"`     // s3
	Region    Template `yaml:"region,omitempty"`     // s3
	Prefix    Template `yaml:"prefix,omitempty"`     // s3; default pcm/${task.name}
	AccessKey string   `yaml:"access_key,omitempty"` // s3: secret
	SecretKey string   `yaml:"secret_key,omitempty"` // s3: secret
	Scheme    string   `yaml:"scheme,omitempty"`     // of urls that the job sees: s3, obs, or https for pre-signed ones; default s3

	Upload *Transfer `yaml:"upload,omitempty" vars:"object"` // presigned: asks the back end where to put an object
	// presigned: asks the back end where to get one. The id is that of the job; nothing before there is one.
	Download *Transfer `yaml:"download,omitempty" vars:"object,id"`
	Discard  *Call     `yaml:"discard,omitempty" vars:"object"` // presigned: deletes an object, by its name and what give named
}

// Transfer asks the back end for a URL. object has name, size, sha256 (in hex) and
// output, which says that it is one that the job makes: size and sha256 say nothing then.
// Where Give has a url, it is data.inputs[i].url; else that is what Download gives.
type Transfer struct {
	Call    `yaml:",inline"`
	URL     Expression            `yaml:"url" vars:"body,status,header"`               // where the file is put or got
	Method  string                `yaml:"method,omitempty"`                            // default PUT to upload, GET to download
	Headers map[string]Expression `yaml:"headers,omitempty" vars:"body,status,header"` // that the request to the URL needs
	Give    map[string]Expression `yaml:"give,omitempty" vars:"body,status,header"`    // names that create needs of it: data.inputs[i].NAME
	Done    *Call                 `yaml:"done,omitempty" vars:"given"`                 // tells the back end that it is there
}

// Bridge maps between the provider's model of resources and ours, for people and
// for comparison with others; pools are what is sold.
type Bridge struct {
	Classes map[string]string `yaml:"classes,omitempty"` // our class → the provider's flavour
	Regions map[string]string `yaml:"regions,omitempty"` // the provider's region → our label region
	Units   map[string]string `yaml:"units,omitempty"`   // the provider's unit → ours: "card-hour: gpu-hour"
}
