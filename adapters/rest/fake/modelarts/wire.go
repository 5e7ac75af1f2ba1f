package modelarts

// The JSON of the API, with its names. What the service adds in answers stands in the
// same types, and is ignored in requests.

type create struct {
	Kind      string    `json:"kind"`
	Metadata  *metadata `json:"metadata"`
	Algorithm *recipe   `json:"algorithm"`
	Spec      *spec     `json:"spec"`
}

type metadata struct {
	ID          string            `json:"id,omitempty"`
	Name        string            `json:"name"`
	Workspace   string            `json:"workspace_id"`
	Description string            `json:"description"`
	CreateTime  int64             `json:"create_time,omitempty"` // milliseconds
	UserName    string            `json:"user_name"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// recipe is what the API calls an algorithm: what runs, with which data.
type recipe struct {
	ID           string      `json:"id,omitempty"`
	Subscription string      `json:"subscription_id,omitempty"`
	CodeDir      string      `json:"code_dir,omitempty"`
	BootFile     string      `json:"boot_file,omitempty"`
	Command      string      `json:"command,omitempty"`
	WorkingDir   string      `json:"working_dir,omitempty"`
	LocalCodeDir string      `json:"local_code_dir,omitempty"`
	Parameters   []parameter `json:"parameters,omitempty"`
	Inputs       []channel   `json:"inputs,omitempty"`
	Outputs      []channel   `json:"outputs,omitempty"`
	Engine       *engine     `json:"engine,omitempty"`
	// Environments is an object in requests and, says the vendor's SDK, a list of objects in answers.
	Environments any `json:"environments,omitempty"`
}

type parameter struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

type channel struct {
	Name     string `json:"name"`
	LocalDir string `json:"local_dir,omitempty"`
	Access   string `json:"access_method,omitempty"` // "parameter" or "env"
	Remote   *struct {
		OBS     *obs `json:"obs,omitempty"`
		Dataset any  `json:"dataset,omitempty"`
	} `json:"remote"`
}

type obs struct {
	URL string `json:"obs_url"`
}

type engine struct {
	ID      string `json:"engine_id,omitempty"`
	Name    string `json:"engine_name,omitempty"`
	Version string `json:"engine_version,omitempty"`
	Image   string `json:"image_url,omitempty"`
}

type spec struct {
	Resource  *resource `json:"resource"`
	LogExport *obs      `json:"log_export_path,omitempty"`
	AutoStop  *autoStop `json:"auto_stop,omitempty"`
}

type resource struct {
	Policy       string        `json:"policy,omitempty"`
	FlavorID     string        `json:"flavor_id"`
	FlavorName   string        `json:"flavor_name,omitempty"`
	NodeCount    int           `json:"node_count"`
	PoolID       string        `json:"pool_id,omitempty"`
	FlavorDetail *flavorDetail `json:"flavor_detail,omitempty"`
}

type autoStop struct {
	Unit     string `json:"time_unit"`
	Duration int    `json:"duration"`
}

type answer struct {
	Kind      string   `json:"kind"`
	Metadata  metadata `json:"metadata"`
	Status    status   `json:"status"`
	Algorithm recipe   `json:"algorithm"`
	Spec      spec     `json:"spec"`
}

type status struct {
	Phase     string       `json:"phase"`
	Secondary string       `json:"secondary_phase"`
	Duration  int64        `json:"duration"`           // milliseconds
	StartTime int64        `json:"start_time"`         // milliseconds; 0 before the start
	Nodes     [][]int32    `json:"node_count_metrics"` // null always: what its numbers are differs between reference and SDK
	Tasks     []string     `json:"tasks"`
	Statuses  []taskStatus `json:"task_statuses,omitempty"`
}

type taskStatus struct {
	Task    string `json:"task"`
	Code    int    `json:"exit_code"`
	Message string `json:"message"`
}

type search struct {
	Offset    int      `json:"offset"` // counts pages
	Limit     *int     `json:"limit"`
	SortBy    string   `json:"sort_by"`
	Order     string   `json:"order"`
	GroupBy   string   `json:"group_by"`
	Workspace string   `json:"workspace_id"`
	Filters   []filter `json:"filters"`
}

type filter struct {
	Key      string   `json:"key"`
	Operator string   `json:"operator"`
	Value    []string `json:"value"`
}

type found struct {
	Total     int      `json:"total"`
	Count     int      `json:"count"`
	Limit     int      `json:"limit"`
	Offset    int      `json:"offset"`
	SortBy    string   `json:"sort_by"`
	Order     string   `json:"order"`
	GroupBy   string   `json:"group_by"`
	Workspace string   `json:"workspace_id"`
	AIProject string   `json:"ai_project"`
	Items     []answer `json:"items"`
}

type event struct {
	Time    string `json:"time"`
	Level   string `json:"level"`
	Message string `json:"message"`
	Source  string `json:"source"`
}

type size struct {
	Size int    `json:"size"`
	Unit string `json:"unit"`
}

type textSize struct {
	Size string `json:"size"`
	Unit string `json:"unit"`
}

type cpu struct {
	Arch  string `json:"arch"`
	Cores int    `json:"core_num"`
}

type gpu struct {
	Units   int    `json:"unit_num"`
	Product string `json:"product_name"`
	Memory  string `json:"memory"`
}

type npu struct {
	Units   string `json:"unit_num"` // a text, unlike that of GPUs
	Product string `json:"product_name"`
	Memory  string `json:"memory"`
}

type billing struct {
	Code  string `json:"code"`
	Units int    `json:"unit_num"`
}

type flavorInfo struct {
	MaxNum int  `json:"max_num"`
	CPU    cpu  `json:"cpu"`
	GPU    *gpu `json:"gpu,omitempty"`
	NPU    *npu `json:"npu,omitempty"`
	Memory size `json:"memory"`
	Disk   any  `json:"disk,omitempty"` // a size, in a job's details with its number as text
}

type flavorDetail struct {
	Type    string     `json:"flavor_type"`
	Billing billing    `json:"billing"`
	Info    flavorInfo `json:"flavor_info"`
}

type listedFlavor struct {
	ID         string            `json:"flavor_id"`
	Name       string            `json:"flavor_name"`
	MaxNum     int               `json:"max_num"`
	Attributes map[string]string `json:"attributes,omitempty"`
	flavorDetail
}
