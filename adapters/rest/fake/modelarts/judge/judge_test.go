package judge

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/huaweicloud/huaweicloud-sdk-go-obs/obs"
	"github.com/huaweicloud/huaweicloud-sdk-go-v3/core/auth/basic"
	"github.com/huaweicloud/huaweicloud-sdk-go-v3/core/auth/signer"
	"github.com/huaweicloud/huaweicloud-sdk-go-v3/core/config"
	"github.com/huaweicloud/huaweicloud-sdk-go-v3/core/request"
	"github.com/huaweicloud/huaweicloud-sdk-go-v3/core/sdkerr"
	modelarts "github.com/huaweicloud/huaweicloud-sdk-go-v3/services/modelarts/v1"
	"github.com/huaweicloud/huaweicloud-sdk-go-v3/services/modelarts/v1/model"
)

// fake is what fakecloud says of itself.
type fake struct {
	URL     string `json:"url"`
	Store   string `json:"store"`
	Project string `json:"project"`
	Bucket  string `json:"bucket"`
	Access  string `json:"access_key"`
	Secret  string `json:"secret_key"`
}

// binary is fakecloud: that of FAKECLOUD, or built from the tree around this module.
var binary = os.Getenv("FAKECLOUD")

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	if binary == "" {
		dir, err := os.MkdirTemp("", "judge-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		binary = filepath.Join(dir, "fakecloud")
		build := exec.Command("go", "build", "-o", binary, "./adapters/rest/fake/cmd/fakecloud")
		build.Dir = "../../../../.."
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "building fakecloud: %v\n%s", err, out)
			return 1
		}
	}
	return m.Run()
}

// start starts a fake that ends with the test.
func start(t *testing.T) fake {
	t.Helper()
	cmd := exec.Command(binary, "modelarts")
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			t.Errorf("fakecloud: %v", err)
		}
	})
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err != nil {
		t.Fatal(err)
	}
	var f fake
	if err := json.Unmarshal(line, &f); err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	return f
}

// client is the vendor's for ModelArts.
func (f fake) client(t *testing.T, access, secret string) *modelarts.ModelArtsClient {
	t.Helper()
	credentials, err := basic.NewCredentialsBuilder().WithAk(access).WithSk(secret).WithProjectId(f.Project).SafeBuild()
	if err != nil {
		t.Fatal(err)
	}
	c, err := modelarts.ModelArtsClientBuilder().WithEndpoints([]string{f.URL}).WithCredential(credentials).
		WithHttpConfig(config.DefaultHttpConfig().WithTimeout(30 * time.Second)).SafeBuild()
	if err != nil {
		t.Fatal(err)
	}
	return modelarts.NewModelArtsClient(c)
}

// objects is the vendor's client for OBS, which signs as S3's version 4 has it.
func (f fake) objects(t *testing.T, secret string) *obs.ObsClient {
	t.Helper()
	c, err := obs.New(f.Access, secret, f.Store, obs.WithSignature(obs.SignatureV4), obs.WithPathStyle(true), obs.WithRegion("cn-north-4"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func p[T any](v T) *T { return &v }

// job asks for a command on a small machine.
func job(command string, change func(*model.Job)) *model.CreateTrainingJobRequest {
	j := &model.Job{
		Kind:     "job",
		Metadata: &model.JobMetadata{Name: "judged_1", Description: p("by the vendor's client")},
		Algorithm: &model.JobAlgorithm{
			Engine:  &model.JobEngine{ImageUrl: p("org/image:1")},
			Command: &command,
		},
		Spec: &model.Spec{Resource: &model.SpecResource{FlavorId: p("modelarts.vm.cpu.2u"), NodeCount: 1}},
	}
	if change != nil {
		change(j)
	}
	return &model.CreateTrainingJobRequest{Body: j}
}

// until waits for a phase.
func until(t *testing.T, c *modelarts.ModelArtsClient, id, phase string) *model.ShowTrainingJobDetailsResponse {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; <-time.After(20 * time.Millisecond) {
		v, err := c.ShowTrainingJobDetails(&model.ShowTrainingJobDetailsRequest{TrainingJobId: id})
		if err != nil {
			t.Fatal(err)
		}
		if *v.Status.Phase == phase {
			return v
		}
		if time.Now().After(end) {
			t.Fatalf("no phase %s: %v", phase, v)
		}
	}
}

// refused checks that the vendor's client understands a refusal.
func refused(t *testing.T, what string, err error, status int, code, says string) {
	t.Helper()
	var e *sdkerr.ServiceResponseError
	if !errors.As(err, &e) || e.StatusCode != status || e.ErrorCode != code || !strings.Contains(e.ErrorMessage, says) || e.RequestId == "" {
		t.Errorf("%s: %v, want %d %s %q", what, err, status, code, says)
	}
}

func TestJob(t *testing.T) {
	f := start(t)
	c, data := f.client(t, f.Access, f.Secret), f.objects(t, f.Secret)
	if _, err := data.PutObject(&obs.PutObjectInput{
		PutObjectBasicInput: obs.PutObjectBasicInput{ObjectOperationInput: obs.ObjectOperationInput{Bucket: f.Bucket, Key: "in/a b/ü.txt"}},
		Body:                strings.NewReader("input"),
	}); err != nil {
		t.Fatal(err)
	}
	made, err := c.CreateTrainingJob(job(`cat "$data/a b/ü.txt"; echo " of $WHO"; echo done > "$MA_MOUNT_PATH/outputs/result_0/file"; exit 5`, func(j *model.Job) {
		j.Algorithm.Environments = map[string]string{"WHO": "ours"}
		j.Algorithm.Inputs = &[]model.Input{{Name: "data", AccessMethod: p("env"),
			Remote: &model.InputDataInfo{Obs: &model.InputDataInfoObs{ObsUrl: "obs://" + f.Bucket + "/in/"}}}}
		j.Algorithm.Outputs = &[]model.Output{{Name: "result", Remote: &model.Remote{Obs: &model.RemoteObs{ObsUrl: "/" + f.Bucket + "/out/"}}}}
	}))
	if err != nil {
		t.Fatal(err)
	}
	if made.HttpStatusCode != 201 || *made.Status.Phase != "Creating" || made.Metadata.Name != "judged_1" || *made.Spec.Resource.FlavorDetail.FlavorInfo.Memory.Size != 8 {
		t.Errorf("created: %v", made)
	}
	id := *made.Metadata.Id
	v := until(t, c, id, "Failed")
	if s := *v.Status.TaskStatuses; len(s) != 1 || *s[0].ExitCode != 5 || *s[0].Task != "worker-0" {
		t.Errorf("status: %v", v.Status)
	}
	if v.Algorithm.Inputs == nil || (*v.Algorithm.Inputs)[0].Remote.Obs.ObsUrl != "obs://"+f.Bucket+"/in/" || *v.Status.StartTime == 0 || len(*v.Algorithm.Environments) != 1 {
		t.Errorf("shown: %v", v)
	}
	log, err := c.ShowTrainingJobLogsPreview(&model.ShowTrainingJobLogsPreviewRequest{TrainingJobId: id, TaskId: "worker-0"})
	if err != nil || *log.Content != "input of ours\n" || *log.CurrentSize != 14 || *log.FullSize != 14 {
		t.Errorf("log: %v, %v", log, err)
	}
	link, err := c.ShowObsUrlOfTrainingJobLogs(&model.ShowObsUrlOfTrainingJobLogsRequest{TrainingJobId: id, TaskId: "worker-0"})
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.Get(*link.ObsUrl)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if text, err := io.ReadAll(resp.Body); err != nil || string(text) != "input of ours\n" {
		t.Errorf("the log by its link: %d %s %v", resp.StatusCode, text, err)
	}
	out, err := data.GetObject(&obs.GetObjectInput{GetObjectMetadataInput: obs.GetObjectMetadataInput{Bucket: f.Bucket, Key: "out/file"}})
	if err != nil {
		t.Fatal(err)
	}
	defer out.Body.Close()
	if text, err := io.ReadAll(out.Body); err != nil || string(text) != "done\n" {
		t.Errorf("output: %q %v", text, err)
	}
	events, err := c.ListTrainingJobEvents(&model.ListTrainingJobEventsRequest{TrainingJobId: id, Limit: p(int32(100))})
	if err != nil || len(*events.Events) == 0 || int(*events.Total) != len(*events.Events) {
		t.Errorf("events: %v, %v", events, err)
	}
	if _, err := c.DeleteTrainingJob(&model.DeleteTrainingJobRequest{TrainingJobId: id}); err != nil {
		t.Error(err)
	}
	_, err = c.ShowTrainingJobDetails(&model.ShowTrainingJobDetailsRequest{TrainingJobId: id})
	refused(t, "a deleted job", err, 404, "ModelArts.0102", id)
}

func TestStop(t *testing.T) {
	f := start(t)
	c := f.client(t, f.Access, f.Secret)
	made, err := c.CreateTrainingJob(job(`exec sleep 300`, nil))
	if err != nil {
		t.Fatal(err)
	}
	id := *made.Metadata.Id
	until(t, c, id, "Running")
	stopped, err := c.StopTrainingJob(&model.StopTrainingJobRequest{TrainingJobId: id, Body: &model.JobActionType{ActionType: "terminate"}})
	if err != nil || *stopped.Status.Phase != "Terminating" || stopped.HttpStatusCode != 202 {
		t.Fatalf("stop: %v, %v", stopped, err)
	}
	until(t, c, id, "Terminated")
	_, err = c.StopTrainingJob(&model.StopTrainingJobRequest{TrainingJobId: id, Body: &model.JobActionType{ActionType: "terminate"}})
	refused(t, "stopping again", err, 400, "ModelArts.0105", "Terminated")
	_, err = c.StopTrainingJob(&model.StopTrainingJobRequest{TrainingJobId: id, Body: &model.JobActionType{ActionType: "explode"}})
	refused(t, "another action", err, 400, "ModelArts.50004000", "explode")
}

func TestList(t *testing.T) {
	f := start(t)
	c := f.client(t, f.Access, f.Secret)
	for i := range 3 {
		made, err := c.CreateTrainingJob(job("true", func(j *model.Job) { j.Metadata.Name = fmt.Sprintf("listed-%d", i) }))
		if err != nil {
			t.Fatal(err)
		}
		until(t, c, *made.Metadata.Id, "Completed")
	}
	list := func(in model.JobSearches) (names []string) {
		t.Helper()
		out, err := c.ListTrainingJobs(&model.ListTrainingJobsRequest{Body: &in})
		if err != nil {
			t.Fatal(err)
		}
		for _, j := range *out.Items {
			names = append(names, j.Metadata.Name)
		}
		return names
	}
	if got := list(model.JobSearches{}); !slices.Equal(got, []string{"listed-2", "listed-1", "listed-0"}) {
		t.Errorf("all: %q", got)
	}
	if got := list(model.JobSearches{Limit: p(int32(2)), Offset: p(int32(1)), Order: p("asc")}); !slices.Equal(got, []string{"listed-2"}) {
		t.Errorf("the second page: %q", got)
	}
	like := []model.Filter{{Key: p("name"), Operator: p("like"), Value: &[]string{"-1"}}}
	if got := list(model.JobSearches{Filters: &like}); !slices.Equal(got, []string{"listed-1"}) {
		t.Errorf("by name: %q", got)
	}
	_, err := c.ListTrainingJobs(&model.ListTrainingJobsRequest{Body: &model.JobSearches{Limit: p(int32(51))}})
	refused(t, "a long page", err, 400, "ModelArts.50004000", "51")
}

func TestCapacity(t *testing.T) {
	f := start(t)
	c := f.client(t, f.Access, f.Secret)
	kinds := map[string]int{}
	for kind, want := range map[string]int{"": 5, "CPU": 3, "GPU": 1, "Ascend": 1} {
		in := &model.ShowTrainingJobFlavorsRequest{}
		if kind != "" {
			in.FlavorType = &kind
		}
		out, err := c.ShowTrainingJobFlavors(in)
		if err != nil {
			t.Fatal(err)
		}
		if len(*out.Flavors) != want || int(*out.TotalCount) != want {
			t.Errorf("flavors %q: %v", kind, out)
		}
		for _, fl := range *out.Flavors {
			kinds[*fl.FlavorType]++
			info := fl.FlavorInfo
			if *info.Cpu.CoreNum < 1 || *info.Memory.Unit != "GB" || *info.Disk.Size < 50 || info.Gpu != nil && *info.Gpu.UnitNum != 1 || info.Npu != nil && *info.Npu.UnitNum != "1" {
				t.Errorf("flavor %v", fl)
			}
		}
	}
	if kinds["CPU"] != 6 || kinds["GPU"] != 2 || kinds["Ascend"] != 2 {
		t.Errorf("kinds: %v", kinds)
	}
	quotas, err := c.ShowTrainingQuotas(&model.ShowTrainingQuotasRequest{})
	if err != nil || len(*quotas.Quotas) != 1 || *(*quotas.Quotas)[0].Resource != "job-num" || *(*quotas.Quotas)[0].Used != 0 {
		t.Errorf("quotas: %v, %v", quotas, err)
	}
	engines, err := c.ShowTrainingJobEngines(&model.ShowTrainingJobEnginesRequest{})
	if err != nil || *engines.Total != 1 || *(*engines.Items)[0].EngineName != "PyTorch" {
		t.Errorf("engines: %v, %v", engines, err)
	}
}

func TestRefusals(t *testing.T) {
	f := start(t)
	c := f.client(t, f.Access, f.Secret)
	for says, change := range map[string]func(*model.Job){
		"kind is required":                     func(j *model.Job) { j.Kind = "" },
		"metadata.name is required":            func(j *model.Job) { j.Metadata = nil },
		`metadata.name "a b"`:                  func(j *model.Job) { j.Metadata.Name = "a b" },
		"algorithm is required":                func(j *model.Job) { j.Algorithm = nil },
		"algorithm.engine is required":         func(j *model.Job) { j.Algorithm.Engine = nil },
		"algorithm.command is required":        func(j *model.Job) { j.Algorithm.Command = nil },
		"spec.resource is required":            func(j *model.Job) { j.Spec = nil },
		"spec.resource.flavor_id is required":  func(j *model.Job) { j.Spec.Resource.FlavorId = nil },
		"spec.resource.node_count is required": func(j *model.Job) { j.Spec.Resource.NodeCount = 0 },
		"remote.obs":                           func(j *model.Job) { j.Algorithm.Inputs = &[]model.Input{{Name: "x", Remote: &model.InputDataInfo{}}} },
	} {
		_, err := c.CreateTrainingJob(job("true", change))
		refused(t, says, err, 400, "ModelArts.50004000", says)
	}
	_, err := c.CreateTrainingJob(job("true", func(j *model.Job) { j.Algorithm.Id = p("3f5d6706-7b67-408d-8ba0-ec08048c45ee") }))
	refused(t, "an unknown algorithm", err, 400, "ModelArts.2755", "algorithm not found")
	_, err = f.client(t, f.Access, "wrong").ShowTrainingQuotas(&model.ShowTrainingQuotasRequest{})
	refused(t, "a wrong secret key", err, 401, "APIGW.0301", "verify aksk signature fail")
	_, err = f.client(t, "stranger", f.Secret).ShowTrainingQuotas(&model.ShowTrainingQuotasRequest{})
	refused(t, "an unknown access key", err, 401, "APIGW.0301", "ak not exist")
}

// TestSignature signs with the vendor's signer, then changes what was signed.
func TestSignature(t *testing.T) {
	f := start(t)
	var body string
	send := func(change func(*http.Request)) (int, string) {
		t.Helper()
		const path = "/v2/%s/training-job-searches"
		r := request.NewHttpRequestBuilder().WithEndpoint(f.URL).WithMethod("POST").WithPath(fmt.Sprintf(path, f.Project)).
			AddHeaderParam("Content-Type", "application/json").AddHeaderParam("X-Project-Id", f.Project).
			WithBody("", model.JobSearches{Limit: p(int32(10))}).Build()
		made, err := r.GetBodyToBytes()
		if err != nil {
			t.Fatal(err)
		}
		body = made.String()
		headers, err := signer.Sign(r, f.Access, f.Secret)
		if err != nil {
			t.Fatal(err)
		}
		sent, err := http.NewRequest("POST", f.URL+fmt.Sprintf(path, f.Project), strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		sent.Header.Set("Content-Type", "application/json")
		sent.Header.Set("X-Project-Id", f.Project)
		for name, value := range headers {
			sent.Header.Set(name, value)
		}
		if change != nil {
			change(sent)
		}
		resp, err := http.DefaultClient.Do(sent)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(text)
	}
	if code, text := send(nil); code != 200 {
		t.Fatalf("as it was signed: %d %s", code, text)
	}
	for name, change := range map[string]func(*http.Request){
		"only the body": func(r *http.Request) {
			r.Body, r.ContentLength = io.NopCloser(strings.NewReader(strings.Replace(body, "10", "11", 1))), int64(len(body))
		},
		"the query": func(r *http.Request) { r.URL.RawQuery = "a=1" },
		"the path":  func(r *http.Request) { r.URL.Path = strings.Replace(r.URL.Path, "job-searches", "jobs", 1) },
		"a header":  func(r *http.Request) { r.Header.Set("X-Project-Id", "other") },
		"the date": func(r *http.Request) {
			r.Header.Set("X-Sdk-Date", time.Now().Add(3*time.Second).UTC().Format("20060102T150405Z"))
		},
		"the signature": func(r *http.Request) { r.Header.Set("Authorization", r.Header.Get("Authorization")+"0") },
	} {
		if code, text := send(change); code != 401 || !strings.Contains(text, "APIGW.0301") {
			t.Errorf("%s was changed: %d %s", name, code, text)
		}
	}
}

// TestObjects holds the object store against the vendor's OBS client.
func TestObjects(t *testing.T) {
	f := start(t)
	c := f.objects(t, f.Secret)
	put := func(c *obs.ObsClient, key, text string) error {
		_, err := c.PutObject(&obs.PutObjectInput{
			PutObjectBasicInput: obs.PutObjectBasicInput{ObjectOperationInput: obs.ObjectOperationInput{Bucket: f.Bucket, Key: key}},
			Body:                strings.NewReader(text),
		})
		return err
	}
	for _, key := range []string{"a", "b/1", "b/x y+z~*", "b/ü"} {
		if err := put(c, key, key); err != nil {
			t.Fatalf("%s: %v", key, err)
		}
	}
	meta, err := c.GetObjectMetadata(&obs.GetObjectMetadataInput{Bucket: f.Bucket, Key: "b/x y+z~*"})
	if err != nil || meta.ContentLength != 9 {
		t.Errorf("metadata: %v, %v", meta, err)
	}
	link, err := c.CreateSignedUrl(&obs.CreateSignedUrlInput{Method: obs.HttpMethodGet, Bucket: f.Bucket, Key: "b/ü", Expires: 60})
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.Get(link.SignedUrl)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if text, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != 200 || string(text) != "b/ü" {
		t.Errorf("by a link: %d %q %v", resp.StatusCode, text, err)
	}
	if _, err := c.DeleteObject(&obs.DeleteObjectInput{Bucket: f.Bucket, Key: "a"}); err != nil {
		t.Error(err)
	}
	var e obs.ObsError
	if _, err := c.GetObject(&obs.GetObjectInput{GetObjectMetadataInput: obs.GetObjectMetadataInput{Bucket: f.Bucket, Key: "a"}}); !errors.As(err, &e) || e.Code != "NoSuchKey" {
		t.Errorf("a deleted object: %v", err)
	}
	if err := put(f.objects(t, "wrong"), "a", "a"); !errors.As(err, &e) || e.Code != "SignatureDoesNotMatch" {
		t.Errorf("a wrong secret key: %v", err)
	}
}
