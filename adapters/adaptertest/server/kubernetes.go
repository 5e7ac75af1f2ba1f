package server

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/jointcloud/pcm"
)

// KubernetesVersion is the version of the control plane and the kubelet.
const KubernetesVersion = "1.36.3"

// Kubernetes is a control plane on loopback, without nodes at first.
type Kubernetes struct {
	*Folder
	Server     string // address of the API
	Admin      string // kubeconfig with all rights
	Restricted string // kubeconfig of the service account pcm in namespace pcm, which has the rights that are given to it
	bin        map[string]string
	etcd       *Process
	api        *Process
	others     []*Process
	apiArgs    []string
	token      string
	client     *http.Client
	nodes      []*KubernetesNode
	kwok       *Process
}

// kubernetesPrograms finds what kubernetes-build.sh has made.
func kubernetesPrograms(names ...string) (map[string]string, error) {
	cache := os.Getenv("XDG_CACHE_HOME")
	if cache == "" {
		cache = filepath.Join(os.Getenv("HOME"), ".cache")
	}
	dir := filepath.Join(cache, "pcm", "kubernetes-"+KubernetesVersion)
	found := map[string]string{}
	for _, n := range names {
		p := filepath.Join(dir, n)
		if _, err := os.Stat(p); err != nil {
			return nil, pcm.Errorf(pcm.NotFound, "%w: %s in %s (adapters/adaptertest/server/kubernetes-build.sh makes it)", ErrMissing, n, dir)
		}
		found[n] = p
	}
	return found, nil
}

func freePorts(n int) ([]int, error) {
	var ports []int
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}

func secret() string {
	var b [16]byte
	rand.Read(b[:])
	return fmt.Sprintf("%x", b)
}

// StartKubernetes starts etcd, API server, controller manager and scheduler.
func StartKubernetes(ctx context.Context) (*Kubernetes, error) {
	bin, err := kubernetesPrograms("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet")
	if err != nil {
		return nil, err
	}
	f, err := NewFolder("kube")
	if err != nil {
		return nil, err
	}
	k := &Kubernetes{Folder: f, bin: bin, token: secret()}
	if err := k.start(ctx); err != nil {
		k.Close()
		return nil, err
	}
	return k, nil
}

func (k *Kubernetes) start(ctx context.Context) error {
	ports, err := freePorts(3)
	if err != nil {
		return err
	}
	k.Server = fmt.Sprintf("https://127.0.0.1:%d", ports[0])
	etcdURL, peerURL := fmt.Sprintf("http://127.0.0.1:%d", ports[1]), fmt.Sprintf("http://127.0.0.1:%d", ports[2])
	if err := k.accounts(); err != nil {
		return err
	}
	k.etcd, err = k.Start("etcd", nil, k.bin["etcd"], "--name", "t", "--data-dir", k.Path("etcd"), "--unsafe-no-fsync", "--log-level", "warn",
		"--listen-client-urls", etcdURL, "--advertise-client-urls", etcdURL, "--listen-peer-urls", peerURL,
		"--initial-advertise-peer-urls", peerURL, "--initial-cluster", "t="+peerURL)
	if err != nil {
		return err
	}
	k.apiArgs = []string{"--etcd-servers", etcdURL, "--secure-port", fmt.Sprint(ports[0]), "--bind-address", "127.0.0.1", "--advertise-address", "127.0.0.1",
		"--cert-dir", k.Path("certs"), "--service-cluster-ip-range", "10.96.0.0/24", "--token-auth-file", k.Path("tokens.csv"), "--authorization-mode", "Node,RBAC",
		"--service-account-issuer", "https://kubernetes.default.svc", "--service-account-key-file", k.Path("sa.pub"), "--service-account-signing-key-file", k.Path("sa.key"),
		"--allow-privileged", "--endpoint-reconciler-type", "none", "--disable-admission-plugins", "StorageObjectInUseProtection", "--profiling=false",
		"--default-not-ready-toleration-seconds", "5", "--default-unreachable-toleration-seconds", "5", "--kubelet-preferred-address-types", "InternalIP",
		"--feature-gates", "PodLogsQuerySplitStreams=true"}
	k.client = &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}} // our own server, on loopback
	if err := k.startAPI(ctx); err != nil {
		return err
	}
	kcm, err := k.Start("controllers", nil, k.bin["kube-controller-manager"], "--kubeconfig", k.Path("kcm.kubeconfig"), "--secure-port", "0", "--leader-elect=false",
		"--use-service-account-credentials", "--kube-api-qps", "500", "--kube-api-burst", "1000", "--concurrent-job-syncs", "20", "--service-account-private-key-file", k.Path("sa.key"), "--root-ca-file", k.Path("certs/apiserver.crt"),
		"--node-monitor-period", "2s", "--node-monitor-grace-period", "16s",
		"--controllers", "*,-nodeipam,-route,-service,-cloud-node-lifecycle,-persistentvolume-binder,-attachdetach,-persistentvolume-expander")
	if err != nil {
		return err
	}
	sched, err := k.Start("scheduler", nil, k.bin["kube-scheduler"], "--kubeconfig", k.Path("sched.kubeconfig"), "--secure-port", "0", "--leader-elect=false", "--kube-api-qps", "500", "--kube-api-burst", "1000")
	if err != nil {
		return err
	}
	k.others = []*Process{kcm, sched}
	return kcm.Ready(ctx, func(ctx context.Context) error {
		return k.Do(ctx, http.MethodGet, "/api/v1/namespaces/default/serviceaccounts/default", nil, nil)
	})
}

// accounts makes keys, tokens and kubeconfigs.
func (k *Kubernetes) accounts() error {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	pub, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return err
	}
	files := map[string]string{
		"sa.key": string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})),
		"sa.pub": string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: pub})),
	}
	users := []struct{ file, token, name, groups string }{
		{"admin", k.token, "admin", "system:masters"},
		{"kcm", secret(), "system:kube-controller-manager", ""},
		{"sched", secret(), "system:kube-scheduler", ""},
		{"pcm", secret(), "system:serviceaccount:pcm:pcm", "system:serviceaccounts,system:authenticated"},
		{"node0", secret(), "system:node:node0", "system:nodes"},
		{"node1", secret(), "system:node:node1", "system:nodes"},
	}
	var tokens strings.Builder
	for _, u := range users {
		fmt.Fprintf(&tokens, "%s,%s,%s", u.token, u.name, u.file)
		if u.groups != "" {
			fmt.Fprintf(&tokens, ",%q", u.groups)
		}
		tokens.WriteString("\n")
		files[u.file+".kubeconfig"] = fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: %q, certificate-authority: %q}}]
users: [{name: u, user: {token: %q}}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
`, k.Server, k.Path("certs/apiserver.crt"), u.token)
	}
	files["tokens.csv"] = tokens.String()
	for name, text := range files {
		if err := k.Write(name, text, 0o600); err != nil {
			return err
		}
	}
	k.Admin, k.Restricted = k.Path("admin.kubeconfig"), k.Path("pcm.kubeconfig")
	return nil
}

func (k *Kubernetes) startAPI(ctx context.Context) (err error) {
	if k.api, err = k.Start("apiserver", nil, k.bin["kube-apiserver"], k.apiArgs...); err != nil {
		return err
	}
	return k.api.Ready(ctx, func(ctx context.Context) error { return k.Do(ctx, http.MethodGet, "/readyz", nil, nil) })
}

// API is the API server's process.
func (k *Kubernetes) API() *Process { return k.api }

// RestartAPI ends the API server hard, waits and starts it again.
func (k *Kubernetes) RestartAPI(ctx context.Context, pause time.Duration) error {
	k.api.Kill()
	select {
	case <-time.After(pause):
	case <-ctx.Done():
		return ctx.Err()
	}
	return k.startAPI(ctx)
}

// Do asks the API server with all rights. in and out are JSON values or nil.
func (k *Kubernetes) Do(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, k.Server+path, body)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+k.token)
	req.Header.Set("Content-Type", "application/json")
	if method == http.MethodPatch {
		req.Header.Set("Content-Type", "application/merge-patch+json")
	}
	resp, err := k.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode >= 300 {
		return pcm.Errorf(pcm.Unavailable, "%s %s: %s: %.500s", method, path, resp.Status, data)
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(data, out)
}

// Started names the pods in namespace pcm of which the nodes say that they have started
// the container of that name, those that are gone by now too: events outlive pods for an
// hour. Nodes tell of one a moment after.
func (k *Kubernetes) Started(ctx context.Context, container string) (pods []string, err error) {
	var events struct {
		Items []struct {
			Reason         string
			InvolvedObject struct{ Name, FieldPath string }
		}
	}
	if err := k.Do(ctx, http.MethodGet, "/api/v1/namespaces/pcm/events?limit=10000", nil, &events); err != nil {
		return nil, err
	}
	for _, e := range events.Items {
		if e.Reason == "Started" && e.InvolvedObject.FieldPath == "spec.containers{"+container+"}" {
			pods = append(pods, e.InvolvedObject.Name)
		}
	}
	return pods, nil
}

// kubernetesPaths says where objects of a kind are made.
var kubernetesPaths = map[string]string{
	"Namespace": "/api/v1/namespaces", "ServiceAccount": "/api/v1/namespaces/%s/serviceaccounts", "ResourceQuota": "/api/v1/namespaces/%s/resourcequotas",
	"Role": "/apis/rbac.authorization.k8s.io/v1/namespaces/%s/roles", "RoleBinding": "/apis/rbac.authorization.k8s.io/v1/namespaces/%s/rolebindings",
	"ClusterRole": "/apis/rbac.authorization.k8s.io/v1/clusterroles", "ClusterRoleBinding": "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
	"Node": "/api/v1/nodes", "Pod": "/api/v1/namespaces/%s/pods",
	"Job": "/apis/batch/v1/namespaces/%s/jobs",
}

// Create makes objects.
func (k *Kubernetes) Create(ctx context.Context, objects ...map[string]any) error {
	for _, o := range objects {
		kind, _ := o["kind"].(string)
		path, ok := kubernetesPaths[kind]
		if !ok {
			return pcm.Errorf(pcm.Invalid, "objects of kind %q can't be made here", kind)
		}
		if strings.Contains(path, "%s") {
			meta, _ := o["metadata"].(map[string]any)
			path = fmt.Sprintf(path, meta["namespace"])
		}
		if err := k.Do(ctx, http.MethodPost, path, o, nil); err != nil {
			return err
		}
	}
	return nil
}

// Close stops nodes and control plane and deletes the folder.
func (k *Kubernetes) Close() error {
	for _, n := range k.nodes {
		n.stop()
	}
	for _, p := range append([]*Process{k.kwok}, append(k.others, k.api, k.etcd)...) {
		if p != nil {
			p.Signal(18) // one that is stopped can't end
			p.Stop(5 * time.Second)
		}
	}
	return k.Folder.Close()
}
