package main

import (
	"context"
	"errors"
	"time"

	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// meshSubject is the control plane.
type meshSubject struct {
	*mesh
	load workload
}

func (m *meshSubject) kind() string { return kindMesh }

func (m *meshSubject) change(ctx context.Context, experiment string, round int) (time.Time, []string, error) {
	if experiment == endpoint {
		return m.addInstance(ctx, round)
	}
	resp, err := m.apply(ctx, changeOf(m.load, experiment, round))
	if err != nil {
		return time.Time{}, nil, err
	}
	revisions, err := m.admin.ListRevisions(ctx, &ztv1.ListRevisionsRequest{PageSize: 1})
	if err != nil {
		return time.Time{}, nil, err
	}
	if len(revisions.Revisions) != 1 || revisions.Revisions[0].Revision != resp.Revision {
		return time.Time{}, nil, errors.New("another has changed the spec meanwhile")
	}
	var reaches []string
	connected := m.connected()
	for _, i := range resp.Affected {
		if connected[i.Instance] {
			reaches = append(reaches, i.Instance)
		}
	}
	// When the leader stamped the entry: just before it was proposed.
	return revisions.Revisions[0].When.AsTime(), reaches, nil
}

// connected are the instances that are simulated; the others were only enrolled.
func (m *meshSubject) connected() map[string]bool {
	out := map[string]bool{}
	for _, i := range m.file.Instances[:m.load.total()] {
		out[i.ID] = true
	}
	return out
}

// addInstance enrols one more instance of a service: its callers hear of it. When it
// was begun is taken after the enrolment, which commits somewhere within: the state
// does not tell when.
func (m *meshSubject) addInstance(ctx context.Context, round int) (time.Time, []string, error) {
	began := time.Now()
	if _, err := m.enrol(ctx, []string{m.load.grown(round)}, 1); err != nil {
		return began, nil, err
	}
	return began, m.load.reached(m.file, endpoint, round), nil
}

func (m *meshSubject) settled(ctx context.Context, proxies int) error {
	return m.mesh.settled(ctx, proxies)
}

func (m *meshSubject) restart(ctx context.Context) (began time.Time, can bool, err error) {
	began, err = m.mesh.restart(ctx)
	return began, true, err
}

// otherSubject is what the control plane is measured against.
type otherSubject struct {
	*child
	name string
	load workload
	file fleetFile
	like *report // of the control plane: as much is sent to as many
}

func (o *otherSubject) kind() string { return o.name }

func (o *otherSubject) change(_ context.Context, experiment string, round int) (time.Time, []string, error) {
	reaches := o.load.reached(o.file, experiment, round)
	if o.name == kindFloor {
		a, err := o.ask(order{Do: "push", IDs: reaches, Bytes: o.like.bytesPerProxy(experiment)})
		return a.Began, reaches, err
	}
	if experiment == endpoint {
		ids := []string{o.load.grown(round)}
		for j := range callersOf {
			ids = append(ids, o.load.ref(o.load.services/2+round+1+j))
		}
		a, err := o.ask(order{Do: "endpoint", IDs: ids})
		return a.Began, reaches, err
	}
	a, err := o.ask(order{Do: "change", Spec: changeOf(o.load, experiment, round)})
	return a.Began, reaches, err
}

func (o *otherSubject) settled(context.Context, int) error { return nil }

func (o *otherSubject) restart(context.Context) (time.Time, bool, error) {
	return time.Time{}, false, nil
}

// changeOf is the documents of a change.
func changeOf(w workload, experiment string, round int) string {
	if experiment == wide {
		return w.everywhere(round)
	}
	return w.grant(round, callersOf+1)
}

// reached are the instances that a change reaches.
func (w workload) reached(file fleetFile, experiment string, round int) []string {
	switch experiment {
	case wide:
		return w.of(file, nil)
	case endpoint:
		return w.callers(file, w.services/2+round)
	}
	return w.of(file, map[string]bool{w.ref(round): true, w.ref(round + callersOf + 1): true})
}

// grown is the service that gets an instance more: one whose callers no round has
// changed, as long as there are enough services.
func (w workload) grown(round int) string { return w.ref(w.services/2 + round) }

// callers are the instances that call service i.
func (w workload) callers(file fleetFile, i int) []string {
	who := map[string]bool{}
	for j := range callersOf {
		who[w.ref(i+1+j)] = true
	}
	return w.of(file, who)
}

// of are the simulated instances of workloads; nil is all.
func (w workload) of(file fleetFile, workloads map[string]bool) (out []string) {
	for _, m := range file.Instances[:w.total()] {
		if workloads == nil || workloads[m.Workload] {
			out = append(out, m.ID)
		}
	}
	return out
}
