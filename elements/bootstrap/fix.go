package bootstrap

func (s *solver) fixProblems() {}
