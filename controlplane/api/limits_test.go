package api

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"

	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

func TestLimits(t *testing.T) {
	now := time.Unix(1e9, 0)
	l := newLimits(func() time.Time { return now })
	enter := func(c call) error {
		leave, err := l.enter(c)
		if err == nil {
			leave()
		}
		return err
	}
	node := func(name string) call { return call{principal: Principal{Role: RoleNode, Name: name}} }
	for i := range nodeBurst {
		if err := enter(node("a")); err != nil {
			t.Fatalf("call %d: %v", i, err)
		}
	}
	err := enter(node("a"))
	st, _ := toStatus(err)
	if st.Code() != codes.ResourceExhausted || len(st.Details()) != 1 {
		t.Fatalf("one more: %v", err)
	}
	if r, ok := st.Details()[0].(*errdetails.RetryInfo); !ok || r.RetryDelay.AsDuration() < 5*time.Second {
		t.Errorf("the hint is %v", st.Details())
	}
	for _, c := range []call{node("b"), {principal: Principal{Role: RoleAdmin, Name: "a"}}, {principal: Principal{Role: RoleNode, Name: "a"}, forwarded: true}} {
		if err := enter(c); err != nil {
			t.Errorf("%v: %v", c.principal, err)
		}
	}
	now = now.Add(time.Second)
	if err := enter(node("a")); err != nil {
		t.Errorf("a second later: %v", err)
	}
}

// TestLimitsAreBounded: what is remembered of nodes does not grow with them.
func TestLimitsAreBounded(t *testing.T) {
	now := time.Unix(1e9, 0)
	l := newLimits(func() time.Time { return now })
	for i := range maxNodes + 10 {
		if _, err := l.enter(call{principal: Principal{Role: RoleNode, Name: fmt.Sprint(i)}}); err != nil {
			t.Fatal(err)
		}
		if i == maxNodes-1 {
			now = now.Add(time.Minute)
		}
	}
	if n := len(l.nodes); n > 100 {
		t.Errorf("%d are remembered after a minute of silence", n)
	}
}

func TestEnrolmentsAreBounded(t *testing.T) {
	l := newLimits(time.Now)
	enrol := call{method: ztv1.NodeService_Enrol_FullMethodName}
	var leaves []func()
	for i := range maxEnrolling {
		enrol.address = fmt.Sprint(i)
		leave, err := l.enter(enrol)
		if err != nil {
			t.Fatal(err)
		}
		leaves = append(leaves, leave)
	}
	var r *refusal
	if _, err := l.enter(enrol); !errors.As(err, &r) || r.code != codes.ResourceExhausted {
		t.Errorf("one more: %v", err)
	}
	leaves[0]()
	if _, err := l.enter(enrol); err != nil {
		t.Errorf("after one was done: %v", err)
	}
}

// TestOneAddressEnrols: who asks for one address leaves room for all others, servers
// among them.
func TestOneAddressEnrols(t *testing.T) {
	l := newLimits(time.Now)
	for n := range 2 * maxEnrolling {
		method := []string{ztv1.NodeService_Enrol_FullMethodName, ztv1.NodeService_EnrolServer_FullMethodName}[n%2]
		leave, err := l.enter(call{method: method, address: "192.0.2.7"})
		if (err == nil) != (n < maxEnrollingFrom) {
			t.Fatalf("call %d: %v", n, err)
		}
		if err == nil && n < maxEnrollingFrom {
			defer leave()
		}
	}
	leave, err := l.enter(call{method: ztv1.NodeService_Enrol_FullMethodName, address: "192.0.2.8"})
	if err != nil {
		t.Fatalf("another address: %v", err)
	}
	leave()
	if len(l.from) != 1 {
		t.Errorf("remembered: %v", l.from)
	}
}

// TestPlacesAreLimited: an instance that moves again and again fills neither log nor
// audit log.
func TestPlacesAreLimited(t *testing.T) {
	now := time.Unix(1e9, 0)
	l := newLimits(func() time.Time { return now })
	for i := range placeBurst {
		if err := l.place("a"); err != nil {
			t.Fatalf("place %d: %v", i, err)
		}
	}
	if st, _ := toStatus(l.place("a")); st.Code() != codes.ResourceExhausted {
		t.Errorf("one more: %v", st)
	}
	if err := l.place("b"); err != nil {
		t.Errorf("another instance: %v", err)
	}
	now = now.Add(placeEvery)
	if err := l.place("a"); err != nil {
		t.Errorf("later: %v", err)
	}
}
