mod deletion;
mod hosts;
mod ownership;
mod protect;
mod quiet;
mod trouble;
