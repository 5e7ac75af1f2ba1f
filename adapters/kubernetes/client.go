package kubernetes

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	"github.com/jointcloud/pcm"
)

var (
	jobs     = schema.GroupVersionResource{Group: "batch", Version: "v1", Resource: "jobs"}
	pods     = schema.GroupVersionResource{Version: "v1", Resource: "pods"}
	nodes    = schema.GroupVersionResource{Version: "v1", Resource: "nodes"}
	quotas   = schema.GroupVersionResource{Version: "v1", Resource: "resourcequotas"}
	policies = schema.GroupVersionResource{Group: "networking.k8s.io", Version: "v1", Resource: "networkpolicies"}
)

// cluster is the way to an API server, by the dynamic client: the typed one
// would double the binary.
type cluster struct {
	set    Settings
	config *rest.Config
	http   *http.Client
	api    dynamic.Interface
}

const (
	serviceToken = "/var/run/secrets/kubernetes.io/serviceaccount/token"
	serviceCA    = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt"
	callTimeout  = 15 * time.Second // of one request that is no stream
	pageSize     = 500
)

func connect(set Settings) (*cluster, error) {
	var config *rest.Config
	switch {
	case set.Kubeconfig != "":
		rules := &clientcmd.ClientConfigLoadingRules{ExplicitPath: set.Kubeconfig}
		over := &clientcmd.ConfigOverrides{CurrentContext: set.Context}
		c, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, over).ClientConfig()
		if err != nil {
			return nil, pcm.Errorf(pcm.Invalid, "kubeconfig %s: %w", set.Kubeconfig, err)
		}
		config = c
	case set.Server != "":
		if _, err := os.Stat(serviceToken); err != nil {
			return nil, pcm.Errorf(pcm.Invalid, "this pod has no service account: %w; name a kubeconfig", err)
		}
		config = &rest.Config{Host: set.Server, BearerTokenFile: serviceToken, TLSClientConfig: rest.TLSClientConfig{CAFile: serviceCA}}
	default:
		return nil, pcm.Errorf(pcm.Invalid, "no kubeconfig is named, and this is no pod of a cluster")
	}
	quiet()
	config.UserAgent = "pcm"
	if !strings.Contains(config.Host, "://") {
		config.Host = "https://" + config.Host
	}
	config.QPS, config.Burst = 200, 400 // the server has its own idea of what is fair
	config.WarningHandler = rest.NoWarnings{}
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, pcm.Errorf(pcm.Invalid, "cluster at %s: %w", config.Host, err)
	}
	api, err := dynamic.NewForConfigAndClient(config, client)
	if err != nil {
		return nil, pcm.Errorf(pcm.Invalid, "cluster at %s: %w", config.Host, err)
	}
	return &cluster{set, config, client, api}, nil
}

// quiet keeps the library from writing to our standard error; its errors come to us.
var quiet = sync.OnceFunc(func() {
	klog.LogToStderr(false)
	klog.SetOutput(io.Discard)
})

// in gives the resource in our namespace.
func (c *cluster) in(r schema.GroupVersionResource) dynamic.ResourceInterface {
	return c.api.Resource(r).Namespace(c.set.Namespace)
}

// fault makes an error of the API server one of ours.
func fault(what string, err error) error {
	if err == nil {
		return nil
	}
	var e *pcm.Error
	if errors.As(err, &e) {
		return err
	}
	code := pcm.Unavailable
	switch {
	case apierrors.IsNotFound(err):
		code = pcm.NotFound
	case apierrors.IsConflict(err), apierrors.IsAlreadyExists(err):
		code = pcm.Conflict
	case apierrors.IsInvalid(err), apierrors.IsBadRequest(err):
		code = pcm.Invalid
	case apierrors.IsForbidden(err), apierrors.IsUnauthorized(err):
		code = pcm.Forbidden
	}
	return pcm.Errorf(code, "can't %s: %w", what, err)
}

// away tells whether an error may pass: the server is not there, or too busy.
func away(err error) bool {
	var status apierrors.APIStatus
	if !errors.As(err, &status) {
		return true // of the network
	}
	return apierrors.IsServerTimeout(err) || apierrors.IsTimeout(err) || apierrors.IsTooManyRequests(err) ||
		apierrors.IsServiceUnavailable(err) || apierrors.IsInternalError(err) || apierrors.IsUnexpectedServerError(err) || status.Status().Code >= 500
}

// kill deletes a pod, with so many seconds for its containers to end.
func (c *cluster) kill(ctx context.Context, pod string, seconds int64) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	err := c.in(pods).Delete(ctx, pod, metav1.DeleteOptions{GracePeriodSeconds: &seconds})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// suspend keeps a Job from making pods, and makes its controller end those there are.
func (c *cluster) suspend(ctx context.Context, job string) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err := c.in(jobs).Patch(ctx, job, types.MergePatchType, []byte(`{"spec":{"suspend":true}}`), metav1.PatchOptions{})
	if apierrors.IsNotFound(err) || apierrors.IsInvalid(err) { // one that has ended can't be changed
		return nil
	}
	return err
}

// forget deletes a Job with its pods.
func (c *cluster) forget(ctx context.Context, job string) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	background := metav1.DeletePropagationBackground
	err := c.in(jobs).Delete(ctx, job, metav1.DeleteOptions{PropagationPolicy: &background})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// own tells whether a Job that is there is this node's.
func (c *cluster) own(ctx context.Context, job string) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	o, err := c.in(jobs).Get(ctx, job, metav1.GetOptions{})
	if err != nil {
		return false, err
	}
	l := o.GetLabels()
	return l[labelManaged] == managed && l[labelInstance] == c.set.Instance, nil
}

// gone tells whether the server says that there is no such Job.
func (c *cluster) gone(ctx context.Context, job string) bool {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err := c.in(jobs).Get(ctx, job, metav1.GetOptions{})
	return apierrors.IsNotFound(err)
}

func (c *cluster) create(ctx context.Context, r schema.GroupVersionResource, o map[string]any) (*unstructured.Unstructured, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return c.in(r).Create(ctx, &unstructured.Unstructured{Object: o}, metav1.CreateOptions{FieldManager: "pcm"})
}

// answers asks the server for a sign of life.
func (c *cluster) answers(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(c.config.Host, "/")+"/version", nil)
	if err != nil {
		return pcm.Errorf(pcm.Invalid, "server %q: %w", c.config.Host, err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return pcm.Errorf(pcm.Unavailable, "the cluster at %s does not answer: %w", c.config.Host, err)
	}
	defer resp.Body.Close()
	io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10)) // so that the connection can be used again
	if resp.StatusCode >= 500 {
		return pcm.Errorf(pcm.Unavailable, "the cluster at %s is not ready: %s", c.config.Host, resp.Status)
	}
	return nil
}

// url names a subresource of a pod.
func (c *cluster) url(pod, sub string, query url.Values) (*url.URL, error) {
	base, err := url.Parse(strings.TrimSuffix(c.config.Host, "/"))
	if err != nil {
		return nil, pcm.Errorf(pcm.Invalid, "server %q: %w", c.config.Host, err)
	}
	base = base.JoinPath("api/v1/namespaces", c.set.Namespace, "pods", pod, sub)
	base.RawQuery = query.Encode()
	return base, nil
}

// logs opens the output of a container. stream is "" (both), "Stdout" or "Stderr".
func (c *cluster) logs(ctx context.Context, pod, container, stream string, follow bool) (io.ReadCloser, error) {
	q := url.Values{"container": {container}}
	if follow {
		q.Set("follow", "true")
	}
	if stream != "" {
		q.Set("stream", stream)
	}
	u, err := c.url(pod, "log", q)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 4096)) // what there is of the reason
		return nil, &refusal{resp.StatusCode, strings.TrimSpace(string(text))}
	}
	return resp.Body, nil
}

// refusal is an answer that is none.
type refusal struct {
	code int
	text string
}

func (r *refusal) Error() string { return http.StatusText(r.code) + ": " + r.text }
