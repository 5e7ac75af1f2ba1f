package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/jointcloud/pcm"
)

// Target names a node. With API the client speaks TCP; else it uses the unix
// socket in the data folder.
type Target struct {
	API   string // HOST:PORT
	Data  string // data folder: holds the socket and the token
	Token string // for TCP; "": that in Data, if it is there
}

// Client speaks to one node. It is safe for concurrent use. Errors are *pcm.Error
// with the node's own code; a node that can't be reached is pcm.Unavailable.
type Client struct {
	http  *http.Client
	base  string // "http://HOST:PORT"
	token string
	where string // for people
}

// Dial makes a client for a node. It doesn't connect: the first call does.
func Dial(t Target) (*Client, error) {
	transport := &http.Transport{MaxIdleConnsPerHost: 16, IdleConnTimeout: time.Minute, DisableCompression: true}
	c := &Client{http: &http.Client{Transport: transport}, token: t.Token}
	if t.API == "" {
		if t.Data == "" {
			return nil, pcm.Errorf(pcm.Invalid, "which node? name it with --api HOST:PORT or --data DIR")
		}
		c.base, c.where = "http://pcm", t.Data
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) { return dialUnix(ctx, t.Data) }
		return c, nil
	}
	if _, port, err := net.SplitHostPort(t.API); err != nil || port == "" {
		return nil, pcm.Errorf(pcm.Invalid, "%q is not an address of the form HOST:PORT, like 127.0.0.1:7420", t.API)
	}
	if c.token == "" && t.Data != "" {
		var err error
		if c.token, err = ReadToken(t.Data); err != nil {
			return nil, err
		}
	}
	c.base, c.where = "http://"+t.API, t.API
	return c, nil
}

// Close lets go of idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// maxAnswer bounds an answer that is read whole.
const maxAnswer = 256 << 20

// send makes a request and returns its answer if that is a success.
func (c *Client) send(ctx context.Context, method, path string, query url.Values, body any) (*http.Response, error) {
	var r io.Reader
	if body != nil {
		raw, err := json.Marshal(body)
		if err != nil {
			return nil, pcm.Errorf(pcm.Invalid, "can't write the request: %w", err)
		}
		r = bytes.NewReader(raw)
	}
	u := c.base + path
	if len(query) > 0 {
		u += "?" + query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, u, r)
	if err != nil {
		return nil, pcm.Errorf(pcm.Invalid, "can't make a request of %s: %w", path, err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	return c.sendRequest(ctx, req)
}

// sendRequest sends a request with the token and returns its answer if that is a success.
func (c *Client) sendRequest(ctx context.Context, req *http.Request) (*http.Response, error) {
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.unreachable(ctx, err)
	}
	if resp.StatusCode < 400 {
		return resp, nil
	}
	defer resp.Body.Close()
	raw, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20)) // cut short or not, what came is judged below
	var e ErrorBody
	if json.Unmarshal(raw, &e) != nil || e.Fault.Code == "" {
		return nil, pcm.Errorf(codeOfStatus(resp.StatusCode), "%s answered %s, not in the way that a PCM node does: is another program listening there?", c.where, resp.Status)
	}
	return nil, &pcm.Error{Code: e.Fault.Code, Message: e.Fault.Message}
}

func (c *Client) unreachable(ctx context.Context, err error) error {
	if cause := ctx.Err(); cause != nil {
		if errors.Is(cause, context.DeadlineExceeded) {
			return pcm.Errorf(pcm.Unavailable, "the node at %s did not answer in time: %w", c.where, cause)
		}
		return pcm.Errorf(pcm.Unavailable, "interrupted: %w", cause)
	}
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "dial" {
		return pcm.Errorf(pcm.Unavailable, "no node answers at %s: start one with 'pcm up' or name it with --api/--data (%v)", c.where, op.Err)
	}
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	return pcm.Errorf(pcm.Unavailable, "the connection to the node at %s broke: %w", c.where, err)
}

func (c *Client) do(ctx context.Context, method, path string, query url.Values, body, into any) error {
	resp, err := c.send(ctx, method, path, query, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return c.unreachable(ctx, err)
	}
	if err := json.Unmarshal(raw, into); err != nil {
		return pcm.Errorf(pcm.Internal, "can't read the node's answer to %s: %w", path, err)
	}
	return nil
}

func get[T any](ctx context.Context, c *Client, path string) (v T, err error) {
	return v, c.do(ctx, http.MethodGet, path, nil, nil, &v)
}

func post[T any](ctx context.Context, c *Client, path string, body any) (v T, err error) {
	return v, c.do(ctx, http.MethodPost, path, nil, body, &v)
}

// Query says which part of a list is wanted. The zero Query is all of it.
type Query struct {
	Limit  int    // most items; 0: all
	Cursor string // what an earlier part had as Next
	State  string // of jobs, tasks or trades: only those
	Job    pcm.JobID
}

const pageSize = 10000

func list[T any](ctx context.Context, c *Client, path string, q Query, most int) (List[T], error) {
	all := List[T]{Items: []T{}, Next: q.Cursor}
	for {
		v := url.Values{}
		want := most
		if q.Limit > 0 {
			want = min(most, q.Limit-len(all.Items))
		}
		v.Set("limit", strconv.Itoa(want))
		for name, value := range map[string]string{"cursor": all.Next, "state": q.State, "job": string(q.Job)} {
			if value != "" {
				v.Set(name, value)
			}
		}
		var page List[T]
		if err := c.do(ctx, http.MethodGet, path, v, nil, &page); err != nil {
			return all, err
		}
		if len(page.Items) == 0 && page.Next != "" {
			return all, pcm.Errorf(pcm.Internal, "the node at %s returns empty pages without end", c.where)
		}
		all.Items, all.Next = append(all.Items, page.Items...), page.Next
		if page.Next == "" || (q.Limit > 0 && len(all.Items) >= q.Limit) {
			return all, nil
		}
	}
}

// Status is the node at a glance.
func (c *Client) Status(ctx context.Context) (Status, error) {
	return get[Status](ctx, c, "/v1/status")
}

// Ready is nil when the node can take work.
func (c *Client) Ready(ctx context.Context) error {
	_, err := get[Health](ctx, c, "/readyz")
	return err
}

// Peers lists the peers of the mesh.
func (c *Client) Peers(ctx context.Context) (List[Peer], error) {
	return list[Peer](ctx, c, "/v1/peers", Query{}, pageSize)
}

// Offers lists what is sold in the mesh, a row for each pool.
func (c *Client) Offers(ctx context.Context) (List[Offer], error) {
	return list[Offer](ctx, c, "/v1/offers", Query{}, pageSize)
}

// Cells lists the cells that the node knows.
func (c *Client) Cells(ctx context.Context) (List[Cell], error) {
	return list[Cell](ctx, c, "/v1/cells", Query{}, pageSize)
}

// Balances lists what accounts owe each other.
func (c *Client) Balances(ctx context.Context) (List[Balance], error) {
	return list[Balance](ctx, c, "/v1/balances", Query{}, pageSize)
}

// Trades lists trades, newest first.
func (c *Client) Trades(ctx context.Context, q Query) (List[Trade], error) {
	return list[Trade](ctx, c, "/v1/trades", q, pageSize)
}

// Trade finds one trade by any unambiguous beginning of its ID.
func (c *Client) Trade(ctx context.Context, id string) (Trade, error) {
	return get[Trade](ctx, c, "/v1/trades/"+url.PathEscape(id))
}

// Records lists records of the ledger, oldest first; q.Cursor is the number of the first.
func (c *Client) Records(ctx context.Context, q Query) (List[RecordView], error) {
	return list[RecordView](ctx, c, "/v1/records", q, 1000)
}

// Verify checks the ledger.
func (c *Client) Verify(ctx context.Context) (Verdict, error) {
	return post[Verdict](ctx, c, "/v1/ledger/verify", nil)
}

// Jobs lists jobs, newest first.
func (c *Client) Jobs(ctx context.Context, q Query) (List[Job], error) {
	return list[Job](ctx, c, "/v1/jobs", q, pageSize)
}

// Job finds one job by any unambiguous beginning of its ID.
func (c *Client) Job(ctx context.Context, id string) (Job, error) {
	return get[Job](ctx, c, jobURL(id))
}

// Tasks lists a job's tasks by step and index.
func (c *Client) Tasks(ctx context.Context, id string, q Query) (List[Task], error) {
	return list[Task](ctx, c, jobURL(id)+"/tasks", q, pageSize)
}

// Task finds one task.
func (c *Client) Task(ctx context.Context, id, step string, index int) (Task, error) {
	return get[Task](ctx, c, taskURL(id, step, index))
}

// Submit submits a job. With an ID of the caller's it may be repeated.
func (c *Client) Submit(ctx context.Context, s Submission) (Job, error) {
	return post[Job](ctx, c, "/v1/jobs", s)
}

// Cancel cancels a job and returns what it is then.
func (c *Client) Cancel(ctx context.Context, id, reason string) (Job, error) {
	return post[Job](ctx, c, jobURL(id)+"/cancel", CancelRequest{reason})
}

// Scale sets how many tasks of a service run; step "" is the job's only service.
func (c *Client) Scale(ctx context.Context, id, step string, count int) (Job, error) {
	return post[Job](ctx, c, jobURL(id)+"/scale", ScaleRequest{step, count})
}

// Explain says why a job's tasks are where they are.
func (c *Client) Explain(ctx context.Context, id string) (Explanation, error) {
	return get[Explanation](ctx, c, jobURL(id)+"/explain")
}

// ExplainSpec says where a job would run.
func (c *Client) ExplainSpec(ctx context.Context, s Submission) (Explanation, error) {
	return post[Explanation](ctx, c, "/v1/explain", s)
}

// Invite makes a token. validFor 0 is the default of 24 h.
func (c *Client) Invite(ctx context.Context, validFor time.Duration, issuer bool) (Invitation, error) {
	r := InviteRequest{Issuer: issuer}
	if validFor != 0 {
		r.ValidFor = pcm.Duration(validFor.String())
	}
	return post[Invitation](ctx, c, "/v1/invites", r)
}

// Join moves the node into the mesh of the token: into a cell by name or ID, into a
// new one (new:NAME), or where it is sent ("").
func (c *Client) Join(ctx context.Context, token, cell string) (Status, error) {
	return post[Status](ctx, c, "/v1/join", JoinRequest{token, cell})
}

// Leave gives the node's membership up.
func (c *Client) Leave(ctx context.Context) (Ack, error) { return post[Ack](ctx, c, "/v1/leave", nil) }

// Down ends the daemon.
func (c *Client) Down(ctx context.Context) (Ack, error) { return post[Ack](ctx, c, "/v1/down", nil) }

func jobURL(id string) string { return "/v1/jobs/" + url.PathEscape(id) }

func taskURL(id, step string, index int) string {
	return fmt.Sprintf("%s/tasks/%s/%d", jobURL(id), url.PathEscape(step), index)
}

// Where is the address or data folder by which the client knows its node.
func (c *Client) Where() string { return strings.TrimSuffix(c.where, "/") }
