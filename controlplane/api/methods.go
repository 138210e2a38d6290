package api

import (
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// Role is the kind of a certificate's holder: what its SPIFFE ID in the control
// trust domain says it is. A role alone gives no admin right.
type Role string

// The roles. Nobody is a caller without a client certificate.
const (
	RoleNobody Role = ""
	RoleAdmin  Role = "admin"
	RoleNode   Role = "node"
	RoleServer Role = "server"
)

// Principal is who calls, as its certificate says.
type Principal struct {
	Role Role
	Name string // an admin's name, an instance id or a server id
}

func (p Principal) String() string {
	if p.Role == RoleNobody {
		return "nobody"
	}
	return string(p.Role) + "/" + p.Name
}

// right is what an admin must have been given for a call.
type right int

const (
	rightNone   right = iota // for callers that are not admins
	rightViewer              // any admin
	rightEditor              // admin, or editor; the handler checks the namespace of each item
	rightAdmin               // admin
)

// of tells whether a role of the log includes the right. One that this version
// does not know includes none.
func (r right) of(role string) bool {
	switch role {
	case "admin":
		return true
	case "editor":
		return r == rightEditor || r == rightViewer
	case "viewer":
		return r == rightViewer
	}
	return false
}

// record says how a call that does something, or answers with a secret, comes to be
// on record. It is refused where it cannot be.
type record int

const (
	// recordNone: it changes nothing that is agreed on, and its answer holds nothing
	// secret.
	recordNone record = iota
	// recordEntry: what it does is an entry of the log, which the state records. The
	// entry is committed before the answer.
	recordEntry
	// recordJournal: it signs for who has enrolled, which the issuance journal of
	// this server records before each signature.
	recordJournal
	// recordedBefore: it answers with a secret, or changes what is no entry. The door
	// commits an entry that says so, before the call is carried out.
	recordedBefore
)

// method is one row of the table of who may call what. A method that is not in
// the table is refused.
type method struct {
	caller Role  // the certificate that is required
	right  right // for RoleAdmin: what the log must say of the caller
	leader bool  // forwarded to the leader, unless the request says stale
	record record
}

// methods is the one table of authorization, for gRPC, REST and forwarded calls.
var methods = map[string]method{
	ztv1.AdminService_Apply_FullMethodName:              {RoleAdmin, rightEditor, true, recordEntry},
	ztv1.AdminService_GetDocument_FullMethodName:        {RoleAdmin, rightViewer, true, recordNone},
	ztv1.AdminService_ListDocuments_FullMethodName:      {RoleAdmin, rightViewer, true, recordNone},
	ztv1.AdminService_WatchDocuments_FullMethodName:     {RoleAdmin, rightViewer, false, recordNone},
	ztv1.AdminService_ListRevisions_FullMethodName:      {RoleAdmin, rightViewer, true, recordNone},
	ztv1.AdminService_Rollback_FullMethodName:           {RoleAdmin, rightEditor, true, recordEntry},
	ztv1.AdminService_GetStatus_FullMethodName:          {RoleAdmin, rightViewer, true, recordNone},
	ztv1.AdminService_WatchReceipt_FullMethodName:       {RoleAdmin, rightViewer, false, recordNone},
	ztv1.AdminService_Can_FullMethodName:                {RoleAdmin, rightViewer, true, recordNone},
	ztv1.AdminService_CreateToken_FullMethodName:        {RoleAdmin, rightEditor, true, recordEntry},
	ztv1.AdminService_ListTokens_FullMethodName:         {RoleAdmin, rightViewer, true, recordNone},
	ztv1.AdminService_DeleteToken_FullMethodName:        {RoleAdmin, rightEditor, true, recordEntry},
	ztv1.AdminService_DeregisterInstance_FullMethodName: {RoleAdmin, rightEditor, true, recordEntry},
	ztv1.AdminService_ListMembers_FullMethodName:        {RoleAdmin, rightViewer, true, recordNone},
	ztv1.AdminService_RemoveMember_FullMethodName:       {RoleAdmin, rightAdmin, true, recordEntry},
	ztv1.AdminService_PromoteMember_FullMethodName:      {RoleAdmin, rightAdmin, true, recordedBefore},
	ztv1.AdminService_DemoteMember_FullMethodName:       {RoleAdmin, rightAdmin, true, recordedBefore},
	ztv1.AdminService_TransferLeadership_FullMethodName: {RoleAdmin, rightAdmin, true, recordedBefore},
	ztv1.AdminService_ListAdmins_FullMethodName:         {RoleAdmin, rightViewer, true, recordNone},
	ztv1.AdminService_AddAdmin_FullMethodName:           {RoleAdmin, rightAdmin, true, recordEntry},
	ztv1.AdminService_RemoveAdmin_FullMethodName:        {RoleAdmin, rightAdmin, true, recordEntry},
	ztv1.AdminService_Block_FullMethodName:              {RoleAdmin, rightEditor, true, recordEntry},
	ztv1.AdminService_Unblock_FullMethodName:            {RoleAdmin, rightEditor, true, recordEntry},
	ztv1.AdminService_GetShadow_FullMethodName:          {RoleAdmin, rightViewer, true, recordNone},
	ztv1.AdminService_EndShadow_FullMethodName:          {RoleAdmin, rightEditor, true, recordEntry},
	ztv1.AdminService_Backup_FullMethodName:             {RoleAdmin, rightAdmin, true, recordedBefore},
	ztv1.AdminService_GetKeys_FullMethodName:            {RoleAdmin, rightViewer, true, recordNone},
	ztv1.AdminService_RotateKey_FullMethodName:          {RoleAdmin, rightAdmin, true, recordEntry},
	ztv1.AdminService_DropKey_FullMethodName:            {RoleAdmin, rightAdmin, true, recordEntry},
	ztv1.AdminService_ListAudit_FullMethodName:          {RoleAdmin, rightViewer, true, recordNone},
	ztv1.AdminService_ReadAudit_FullMethodName:          {RoleAdmin, rightViewer, false, recordNone},
	ztv1.AdminService_ReadJournal_FullMethodName:        {RoleAdmin, rightAdmin, false, recordNone},
	ztv1.AdminService_AcceptJournal_FullMethodName:      {RoleAdmin, rightAdmin, true, recordEntry},
	ztv1.AdminService_ReadRefusals_FullMethodName:       {RoleAdmin, rightViewer, false, recordNone},
	ztv1.AdminService_GetServerInfo_FullMethodName:      {RoleAdmin, rightViewer, false, recordNone},

	ztv1.NodeService_Enrol_FullMethodName:       {RoleNobody, rightNone, true, recordEntry},
	ztv1.NodeService_EnrolServer_FullMethodName: {RoleNobody, rightNone, true, recordEntry},
	ztv1.NodeService_Renew_FullMethodName:       {RoleNode, rightNone, false, recordJournal},
	ztv1.NodeService_Place_FullMethodName:       {RoleNode, rightNone, true, recordEntry},
	ztv1.NodeService_Confirm_FullMethodName:     {RoleNode, rightNone, false, recordNone},
	ztv1.NodeService_Deregister_FullMethodName:  {RoleNode, rightNone, true, recordEntry},

	ztv1.PeerService_Announce_FullMethodName:        {RoleServer, rightNone, true, recordEntry},
	ztv1.PeerService_Reseed_FullMethodName:          {RoleServer, rightNone, true, recordEntry},
	ztv1.PeerService_WatchProxies_FullMethodName:    {RoleServer, rightNone, false, recordNone},
	ztv1.PeerService_ListDifferences_FullMethodName: {RoleServer, rightNone, false, recordNone},
	ztv1.PeerService_FetchAudit_FullMethodName:      {RoleServer, rightNone, false, recordNone},
	ztv1.PeerService_AnchorJournal_FullMethodName:   {RoleServer, rightNone, true, recordEntry},
	ztv1.PeerService_RecordAccess_FullMethodName:    {RoleServer, rightNone, true, recordEntry},
	ztv1.PeerService_GetReport_FullMethodName:       {RoleServer, rightNone, false, recordNone},
	ztv1.PeerService_GetKeyReport_FullMethodName:    {RoleServer, rightNone, false, recordNone},
	ztv1.PeerService_TakeKey_FullMethodName:         {RoleServer, rightNone, false, recordedBefore},
	ztv1.PeerService_ForgetKey_FullMethodName:       {RoleServer, rightNone, false, recordedBefore},
}
