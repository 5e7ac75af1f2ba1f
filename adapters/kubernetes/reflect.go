package kubernetes

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
)

// reflector keeps a view of one kind of objects current: one list, in pages,
// then a watch that goes on where that ended. It lists again only when the server
// no longer knows where that was.
type reflector struct {
	what     string
	api      dynamic.ResourceInterface
	selector string
	log      *slog.Logger

	begin  func()                           // a list begins
	put    func(*unstructured.Unstructured) // there is, in a list or new or changed
	drop   func(*unstructured.Unstructured) // there is no more
	synced func()                           // a list is complete: what it lacked is no more
	failed func(error)                      // the view is out of date, or not to be had
}

const (
	watchLife = 5 * time.Minute // of one watch; the next goes on where it ended
	minWait   = 200 * time.Millisecond
	maxWait   = 10 * time.Second
	maxPages  = 10_000
)

// run ends with ctx.
func (r *reflector) run(ctx context.Context) {
	version := ""
	for wait := minWait; ctx.Err() == nil; {
		began := time.Now()
		var err error
		if version == "" {
			version, err = r.list(ctx)
		}
		if err == nil {
			version, err = r.watch(ctx, version)
		}
		if err != nil && ctx.Err() == nil {
			r.failed(err)
			r.log.Debug("watch was cut", "what", r.what, "err", err)
		}
		if time.Since(began) > maxWait {
			wait = minWait
		}
		if err != nil {
			select {
			case <-ctx.Done():
			case <-time.After(wait/2 + rand.N(wait/2)):
			}
			wait = min(2*wait, maxWait)
		}
	}
}

// list tells of all objects; it returns the version at which they are so.
func (r *reflector) list(ctx context.Context) (version string, err error) {
	r.begin()
	opts := metav1.ListOptions{LabelSelector: r.selector, Limit: pageSize}
	for range maxPages {
		page, err := r.page(ctx, opts)
		if err != nil {
			return "", err
		}
		for i := range page.Items {
			r.put(&page.Items[i])
		}
		if opts.Continue = page.GetContinue(); opts.Continue == "" {
			r.synced()
			return page.GetResourceVersion(), nil
		}
	}
	return "", errors.New("the list has no end")
}

func (r *reflector) page(ctx context.Context, opts metav1.ListOptions) (*unstructured.UnstructuredList, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*callTimeout)
	defer cancel()
	return r.api.List(ctx, opts)
}

// watch follows changes from version on. It returns how far it came; "" when a
// list is needed.
func (r *reflector) watch(ctx context.Context, version string) (string, error) {
	// A server that hangs must not hold the watch for ever: the life is asked of
	// it, and taken a little later.
	ctx, cancel := context.WithTimeout(ctx, watchLife+callTimeout)
	defer cancel()
	seconds := int64(watchLife / time.Second)
	w, err := r.api.Watch(ctx, metav1.ListOptions{LabelSelector: r.selector, ResourceVersion: version, AllowWatchBookmarks: true, TimeoutSeconds: &seconds})
	if err != nil {
		if apierrors.IsResourceExpired(err) || apierrors.IsGone(err) {
			return "", err
		}
		return version, err
	}
	defer w.Stop()
	r.synced0()
	for e := range w.ResultChan() {
		o, _ := e.Object.(*unstructured.Unstructured)
		switch e.Type {
		case watch.Error:
			err := apierrors.FromObject(e.Object)
			if apierrors.IsResourceExpired(err) || apierrors.IsGone(err) {
				return "", err
			}
			return version, err
		case watch.Added, watch.Modified:
			if o != nil {
				r.put(o)
			}
		case watch.Deleted:
			if o != nil {
				r.drop(o)
			}
		}
		if o != nil {
			version = o.GetResourceVersion()
		}
	}
	return version, nil
}

// synced0 tells that the view is current again without a list.
func (r *reflector) synced0() { r.failed(nil) }
