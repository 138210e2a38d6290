package state

import (
	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
)

// Grows says whether an entry is one to refuse while the disk is full: a wish that
// adds. What takes away, what denies (a Block) and what servers need in order to go
// on is none.
func Grows(e *logv1.Entry) bool {
	switch op := e.GetOp().(type) {
	case *logv1.Entry_Apply:
		for _, p := range op.Apply.GetPuts() {
			if p.GetKey().GetKind() != "Block" {
				return true
			}
		}
		return false
	case *logv1.Entry_Propose:
		return !op.Propose.GetEnd()
	case *logv1.Entry_PutToken, *logv1.Entry_Redeem, *logv1.Entry_PutAdmin:
		return true
	}
	return false
}
