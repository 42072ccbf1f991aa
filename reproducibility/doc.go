// Package reproducibility holds what makes two builds of the same inputs give
// the same bytes: the one time of an image ([Epoch]), the one source of its
// identifiers ([Seed]), and the removal from its tree of what differs from
// build to build ([Normalise]).
//
// It reads no clock and no randomness, and fetches nothing; what came into a
// build is the business of its sub-packages. A file that no rule of [Rules]
// knows stays as it is: a rule is only for what was seen to differ, or what no
// two machines may share.
package reproducibility
