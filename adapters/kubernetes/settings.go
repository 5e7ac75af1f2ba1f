package kubernetes

import (
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/jointcloud/pcm"
)

// Settings is how a cluster is used. The daemon and the supervisor have the same
// ones: they travel as JSON, and hold no secret.
type Settings struct {
	Kubeconfig string `json:"kubeconfig,omitempty"` // a file; empty: the pod's own service account
	Context    string `json:"context,omitempty"`    // of the kubeconfig; empty: its current one
	Server     string `json:"server,omitempty"`     // of the cluster we run in; see InCluster
	Namespace  string `json:"namespace"`
	Instance   string `json:"instance"` // label by which our objects are known: that of one data folder

	DefaultImage   string            `json:"default_image"`
	HelperImage    string            `json:"helper_image"`     // has sh, tar and a static busybox
	Images         []string          `json:"images,omitempty"` // patterns of images that specs may name; see MatchImage
	PullPolicy     string            `json:"pull_policy"`      // Always, IfNotPresent or Never
	PullSecrets    []string          `json:"pull_secrets,omitempty"`
	PullLimit      time.Duration     `json:"pull_limit"` // how long an image may fail to come
	LostLimit      time.Duration     `json:"lost_limit"` // how long a node may keep silent
	ServiceAccount string            `json:"service_account,omitempty"`
	PriorityClass  string            `json:"priority_class,omitempty"`
	RuntimeClass   string            `json:"runtime_class,omitempty"`
	NodeSelector   map[string]string `json:"node_selector,omitempty"`
	Tolerations    []Toleration      `json:"tolerations,omitempty"`
	User           int64             `json:"user"`                  // of tasks; never 0
	Network        bool              `json:"network,omitempty"`     // tasks may use it, if they ask
	Accelerator    string            `json:"accelerator,omitempty"` // the resource that a GPU is; empty: what nodes have
	Measure        bool              `json:"measure,omitempty"`     // begin every pod with the helper, so that use is always measured
}

// Toleration lets pods onto nodes that keep others away.
type Toleration struct {
	Key      string `json:"key,omitempty"`
	Operator string `json:"operator,omitempty"`
	Value    string `json:"value,omitempty"`
	Effect   string `json:"effect,omitempty"`
}

const (
	defaultHelper    = "busybox:stable"
	defaultUser      = 65534
	defaultPullLimit = 10 * time.Minute
	defaultLostLimit = 5 * time.Minute // as long as clusters bear with that by default
)

// Defaults fills in what was left empty.
func (s *Settings) Defaults() {
	if s.Namespace == "" {
		s.Namespace = "default"
	}
	if s.HelperImage == "" {
		s.HelperImage = defaultHelper
	}
	if s.DefaultImage == "" {
		s.DefaultImage = s.HelperImage
	}
	if s.PullPolicy == "" {
		s.PullPolicy = "IfNotPresent"
	}
	if s.User == 0 {
		s.User = defaultUser
	}
	if s.LostLimit <= 0 {
		s.LostLimit = defaultLostLimit
	}
	if s.PullLimit <= 0 {
		s.PullLimit = defaultPullLimit
	}
}

var validLabel = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$`)

// Validate finds what is wrong with the settings.
func (s Settings) Validate() error {
	if !validLabel.MatchString(s.Namespace) {
		return pcm.Errorf(pcm.Invalid, "namespace %q is not a name of lower-case letters, digits and dashes", s.Namespace)
	}
	if !validLabel.MatchString(s.Instance) {
		return pcm.Errorf(pcm.Invalid, "instance %q can't be the value of a label", s.Instance)
	}
	if s.User < 1 || s.User > 1<<31-1 {
		return pcm.Errorf(pcm.Invalid, "user %d: tasks run as a user from 1 to %d, never as root", s.User, 1<<31-1)
	}
	for _, p := range s.Images {
		if _, err := path.Match(p, ""); err != nil {
			return pcm.Errorf(pcm.Invalid, "image pattern %q: %w", p, err)
		}
	}
	return nil
}

// MatchImage tells whether specs may name the image. A pattern is matched as
// path.Match does; "registry/team/*" is one level, "registry/team/**" all below.
// Without patterns there is only the default image.
func (s Settings) MatchImage(image string) bool {
	return slices.ContainsFunc(s.Images, func(p string) bool {
		if prefix, ok := strings.CutSuffix(p, "**"); ok {
			return strings.HasPrefix(image, prefix) && !strings.Contains(image, "..")
		}
		ok, err := path.Match(p, image)
		return ok && err == nil
	})
}

// InCluster is the address of the API server of the cluster that this process
// runs in; "" if it doesn't.
func InCluster() string {
	host, port := os.Getenv("KUBERNETES_SERVICE_HOST"), os.Getenv("KUBERNETES_SERVICE_PORT")
	if host == "" || port == "" {
		return ""
	}
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	return "https://" + host + ":" + port
}
