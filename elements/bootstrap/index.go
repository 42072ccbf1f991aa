package bootstrap

type Index struct{ universe *universe }
